"""HTML from templates, in which no data is ever taken for markup."""

from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(template: str, **values: object) -> Html:
    """Fill a template. Whatever is not `Html` is escaped, so that no data is ever taken for markup."""
    return Html(template.format(**{name: _safe(value) for name, value in values.items()}))


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def _safe(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))
