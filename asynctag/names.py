"""The names under which keys and tags stand in a backend: `namespace|kind|text`.

A namespace is a prefix of keys and tags in the backend's one journal, so that nesting works across
namespaces. The kind keeps what users write apart from the tags that the library adds by itself, so
that no user's tag can stand for a key, a function or a namespace. Keys serve as their own tag.
"""

import enum
import re
import reprlib
from collections.abc import Sequence

from asynctag.errors import AsynctagError, ConfigurationError

KEY, TAG, FUNCTION, NAMESPACE = "k", "t", "f", "n"

#: The tag of everything, carried by every entry: an un-namespaced `clear()` invalidates it.
ROOT = f"|{NAMESPACE}|"

#: A tag that no entry carries: invalidating it takes a number from the journal, and does nothing else.
NOBODYS = f"|{NAMESPACE}|-"

_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{0,100}")


#: The most that a tag or a user's own key may have, in bytes of UTF-8.
MAX_BYTES = 1024


def check_text(
    value: object,
    kind: str,
    invalid: type[AsynctagError],
    *,
    too_long: type[AsynctagError] | None = None,
    example: str,
    shorter: str,
) -> str:
    """The plain `str` of a tag or key that users wrote, or an error that says what is wrong with it."""
    shown = reprlib.repr(value)
    if isinstance(value, enum.Enum):
        raise invalid(f"{shown} is not a {kind}: it is a member of an enum. Write its `.value`")
    if isinstance(value, list | tuple | set | frozenset):
        raise invalid(f"{shown} is not a {kind}: give {kind}s one by one, as in f(*{kind}s)")
    if not isinstance(value, str):
        raise invalid(f"{shown} is not a {kind}: a {kind} is a str, not {type(value).__qualname__}")
    text = str.__str__(value)
    if not text:
        raise invalid(f"'' is not a {kind}: it is empty. {example}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise invalid(f"{shown} is not a {kind}: it has a lone surrogate. Decode the text properly first") from None
    if size > MAX_BYTES:
        raise (too_long or invalid)(
            f"{shown} is not a {kind}: it has {size} bytes of UTF-8, and at most {MAX_BYTES} are allowed. {shorter}"
        )
    return text


def check_namespace(namespace: object, option: str = "namespace") -> str:
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            f"{option}={namespace!r}: use at most 100 letters, digits, '_', '.' and '-', such as {option}=\"shop\""
        )
    return namespace


def key_name(namespace: str, key: str) -> str:
    return f"{namespace}|{KEY}|{key}"


def tag_name(namespace: str, tag: str) -> str:
    return f"{namespace}|{TAG}|{tag}"


def function_tag(namespace: str, function: str) -> str:
    return f"{namespace}|{FUNCTION}|{function}"


def namespace_tag(namespace: str) -> str:
    return f"{namespace}|{NAMESPACE}|"


def user_tags(names: tuple[str, ...], namespace: str) -> frozenset[str]:
    """The tags that users wrote among `names`: plain in this namespace, whole where they came from another."""
    prefix = tag_name(namespace, "")
    return frozenset(
        name.removeprefix(prefix) for name in names if name.startswith(prefix) or name.split("|", 2)[1] == TAG
    )


def listed(texts: Sequence[str], most: int) -> str:
    """The first of `texts`, as a list that is read, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def describe(name: str, namespace: str = "") -> str:
    """A name as a person would say it: `tag product:635`, `key shop.product(635)`, `everything`."""
    of, kind, text = name.split("|", 2)
    where = f" of namespace {of}" if of != namespace and of else ""
    match kind:
        case "t":
            return f"tag {text}{where}"
        case "k":
            return f"key {text}{where}"
        case "f":
            return f"function {text}{where}"
        case _:
            return f"namespace {of}" if of else "everything"
