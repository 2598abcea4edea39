"""Whether a value came back as it went in: the same types and values, all the way down; if not, the first place.

Equal is not enough. `1 == 1.0 == True`, `-0.0 == 0.0`, `Decimal("1.5") == Decimal("1.50")`, and two datetimes are equal
in any two zones: a hit that gave the one for the other would not give what the miss gave.
"""

import datetime
import decimal
import enum
import functools
import math
import reprlib
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from asynctag.placeholders import Placeholder
from asynctag.thaw import ATOMS, attributes, is_atom, pydantic_base

__all__ = [
    "AS_ANNOTATED",
    "Difference",
    "Trail",
    "difference",
    "first_line",
    "parts",
    "render",
    "short_name",
    "texts",
]

AS_ANNOTATED: Final = "return what the annotation says"
_UNCHANGED: Final = "encoding and decoding must not change a value"
_MISSING: Final = object()

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 40

Trail: typing.TypeAlias = "tuple[Trail, str, object] | None"
"""Steps to a place: those before, a prefix, a name or an index. Made into text only if there is something to say."""


class Difference(NamedTuple):
    """The first place where two values differ, what is wrong there, what was there, and what to do."""

    path: str
    said: str
    was: object
    advice: str


def difference(was: Any, came: Any) -> Difference | None:
    """Where what came back is not of the same type and value as what it was; None if it is, everywhere."""
    try:
        _compare(was, came, None)
    except _DifferenceError as found:
        return Difference(render(found.trail), found.said, found.was, found.advice)
    return None


class _DifferenceError(Exception):
    def __init__(self, trail: Trail, said: str, was: object, advice: str) -> None:
        super().__init__(said)
        self.trail, self.said, self.was, self.advice = trail, said, was, advice


def render(trail: Trail) -> str:
    """The path to a place: `.variants[1].price`."""
    steps: list[str] = []
    while trail is not None:
        trail, prefix, key = trail
        steps.append(f".{key}" if prefix == "." else prefix if key is None else f"{prefix}[{_short.repr(key)}]")
    return "".join(reversed(steps))


def parts(value: Any) -> Iterator[tuple[str, object, Any]]:
    """The parts of a container or an object, with the step that leads there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield "", key, item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield "", index, item
    elif isinstance(value, msgspec.Struct) or _holds_state(value.__class__):
        for name, item in _state(value).items():
            if name not in _OF_MODELS:
                yield ".", name, item
        for name, item in (getattr(value, "__pydantic_extra__", None) or {}).items():
            yield ".", name, item


def texts(value: Any) -> Iterator[str | bytes]:
    """The texts in a value, however deep, in any order. Each container is gone into once."""
    ahead, seen = [value], {id(value): value}
    while ahead:
        one = ahead.pop()
        if isinstance(one, str | bytes):
            yield one
        elif type(one) not in ATOMS:
            inner = [part for _, _, part in parts(one) if isinstance(part, str | bytes) or id(part) not in seen]
            seen.update((id(part), part) for part in inner)
            ahead += inner


def _state(value: Any) -> dict[str, Any]:
    held = attributes(value)
    if isinstance(value, msgspec.Struct):
        held.update((name, getattr(value, name, _MISSING)) for name in value.__struct_fields__)
    return held


def _compare(was: Any, came: Any, trail: Trail) -> None:
    """Raise _DifferenceError at the first place where the two are not of the same type and value."""
    kind = type(was)
    if kind is not type(came):
        if kind is Placeholder and type(came) is str and str(was) == came:
            return
        _wrong_type(was, came, trail)
    compare = _COMPARE.get(kind)
    if compare is not None:
        compare(was, came, trail)
    elif isinstance(was, enum.Enum):
        if was is not came:
            _differ(was, came, trail)
    elif isinstance(was, (list, tuple)):
        _compare_list(was, came, trail)
        _compare_state(was, came, trail)
    elif isinstance(was, dict):
        _compare_dict(was, came, trail)
        _compare_state(was, came, trail)
    elif is_atom(was):
        _compare_equal(was, came, trail)
    elif isinstance(was, msgspec.Struct) or _holds_state(was.__class__):
        _compare_state(was, came, trail)
    else:
        _compare_opaque(was, came, trail)


def _wrong_type(was: Any, came: Any, trail: Trail) -> NoReturn:
    names = short_name(type(was)), short_name(type(came))
    if names[0] == names[1]:
        names = f"{type(was).__module__}.{names[0]}", f"{type(came).__module__}.{names[1]}"
    subclass = f"{names[0]} is a subclass: annotate it, or return a plain {names[1]}"
    advice = subclass if isinstance(was, type(came)) and type(came) is not int else AS_ANNOTATED
    raise _DifferenceError(trail, f"{names[0]} came back as {names[1]}", was, advice)


def _differ(was: Any, came: Any, trail: Trail, advice: str = "") -> NoReturn:
    raise _DifferenceError(trail, f"{_short.repr(was)} came back as {_short.repr(came)}", was, advice or _UNCHANGED)


def _compare_equal(was: Any, came: Any, trail: Trail) -> None:
    if was != came:
        _differ(was, came, trail)


def _compare_float(was: float, came: float, trail: Trail) -> None:
    if math.isnan(was) and math.isnan(came):
        return
    if was != came or math.copysign(1, was) != math.copysign(1, came):
        _differ(was, came, trail)


def _compare_decimal(was: decimal.Decimal, came: decimal.Decimal, trail: Trail) -> None:
    if was.as_tuple() != came.as_tuple():
        _differ(was, came, trail)


def _compare_clock(was: Any, came: Any, trail: Trail) -> None:
    """Datetimes and times. Zones are the same if both stand for one offset the year round, and it is the same one."""
    zones = was.tzinfo, came.tzinfo
    if (zones[0] is None) != (zones[1] is None):
        _differ(was, came, trail)
    if zones[0] is not None:
        fixed = zones[0].utcoffset(None), zones[1].utcoffset(None)
        if fixed[0] is None or fixed[0] != fixed[1]:
            _differ(was, came, trail, "a zone does not come back: convert to UTC, as in value.astimezone(timezone.utc)")
    if was.replace(tzinfo=None) != came.replace(tzinfo=None) or was.fold != came.fold:
        _differ(was, came, trail)


def _compare_list(was: Any, came: Any, trail: Trail) -> None:
    if len(was) != len(came):
        raise _DifferenceError(trail, f"{len(was)} items came back as {len(came)}", was, _UNCHANGED)
    for index, (left, right) in enumerate(zip(was, came, strict=True)):
        if type(left) not in _SIMPLE or type(left) is not type(right) or left != right:
            _compare(left, right, (trail, "", index))


def _compare_dict(was: dict[Any, Any], came: dict[Any, Any], trail: Trail) -> None:
    if len(was) != len(came):
        raise _DifferenceError(trail, f"{len(was)} keys came back as {len(came)}", was, _UNCHANGED)
    for (key, left), (other, right) in zip(was.items(), came.items(), strict=True):
        if type(key) is not str or type(other) is not str or key != other:
            _compare(key, other, (trail, " key ", key))
        if type(left) not in _SIMPLE or type(left) is not type(right) or left != right:
            _compare(left, right, (trail, "", key))


def _compare_set(was: Any, came: Any, trail: Trail) -> None:
    found = {item: item for item in came}
    lost = 0
    for item in was:
        other = found.pop(item, _MISSING)
        if other is not _MISSING:
            _compare(item, other, (trail, " item ", item))
        elif isinstance(item, float) and math.isnan(item):
            lost += 1  # NaN is found by identity only.
        else:
            raise _DifferenceError(trail, f"the item {_short.repr(item)} did not come back", was, _UNCHANGED)
    if len(found) != lost or not all(isinstance(item, float) and math.isnan(item) for item in found):
        _differ(was, came, trail)


def _compare_opaque(was: Any, came: Any, trail: Trail) -> None:
    try:
        same = bool(was == came)
    except Exception as error:  # Somebody else's `__eq__`.
        said = f"{short_name(type(was))} cannot be compared ({first_line(error)})"
        raise _DifferenceError(trail, said, was, _UNCHANGED) from error
    if not same:
        _differ(was, came, trail)
    _compare_state(was, came, trail)


@functools.lru_cache(maxsize=512)
def _holds_state(kind: type) -> bool:
    base = pydantic_base()
    return (
        hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or (base is not None and issubclass(kind, base))
    )


_OF_MODELS = {
    "__pydantic_fields_set__": " (the fields that were set)",
    "__pydantic_extra__": " (extra fields)",
    "__pydantic_private__": " (private attributes)",
}


def _compare_state(was: Any, came: Any, trail: Trail) -> None:
    left, right = _state(was), _state(came)
    for name in left | right:
        first, second = left.get(name, _MISSING), right.get(name, _MISSING)
        if type(first) in _SIMPLE and type(first) is type(second) and first == second:
            continue
        here: Trail = (trail, _OF_MODELS[name], None) if name in _OF_MODELS else (trail, ".", name)
        if first is not _MISSING and second is not _MISSING:
            _compare(first, second, here)
        elif first is not second:
            said = "is not there once decoded" if second is _MISSING else "is there only once decoded"
            raise _DifferenceError(here, said, first, "only declared fields are kept")


_SIMPLE: Final = frozenset({type(None), bool, int, str, bytes})
"""Types of which equal values are the same in every way."""

_COMPARE: Final[dict[type, Callable[[Any, Any, Trail], None]]] = {
    **dict.fromkeys(ATOMS, _compare_equal),
    float: _compare_float,
    decimal.Decimal: _compare_decimal,
    datetime.datetime: _compare_clock,
    datetime.time: _compare_clock,
    list: _compare_list,
    tuple: _compare_list,
    dict: _compare_dict,
    set: _compare_set,
    frozenset: _compare_set,
    bytearray: _compare_equal,
}


def short_name(kind: type) -> str:
    """The name of a type as an error says it, without the module and the function that it is made in."""
    return kind.__qualname__.rpartition("<locals>.")[2]


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
