"""The text of values in keys, the same in every process.

Two values that differ, or whose types differ, never have one text; what has no text that is the same in every process
is refused. Texts are ASCII: what is printable depends on the version of Python, and so does `repr` of other text.
"""

import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import pathlib
import re
import reprlib
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

from asynctag.errors import UnstableArgumentError

MAX_DEPTH = 100

PLAIN = frozenset({str, int, bool, types.NoneType, float, bytes})
"""Types whose text is what `ascii` gives, but for an int of very many digits."""

_SURELY_PRINTABLE_BITS = 2000
"""Below the smallest limit that an interpreter may have on the digits of an int."""
_HEAP_TYPE = 1 << 9
_CLASS_NAME = re.compile(r"[\w.\-]+")


def stable_text(value: object) -> str:
    """Give the text of a value in keys: another for every other value and type, and the same in every process.

    Equal aware datetimes are one text whatever their zones. The order of dicts and sets does not matter (that of an
    `OrderedDict` does). Subclasses of builtins carry their class, and what attributes they have. Dataclasses, attrs,
    Structs and Pydantic models are their class and fields; any class may say it all with `__cache_key__(self)`.
    """
    return _text(value, 0)


_Writer: TypeAlias = Callable[[Any, int], str]


def _text(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in PLAIN and kind is not int:
        return ascii(value)
    if depth > MAX_DEPTH:
        raise UnstableArgumentError(f"it is nested more than {MAX_DEPTH} deep, or holds itself")
    write = _WRITERS.get(kind)
    return _object(value, kind, depth + 1) if write is None else write(value, depth + 1)


def _int(value: int, _: int = 0) -> str:
    return int.__repr__(value) if int.bit_length(value) < _SURELY_PRINTABLE_BITS else int.__format__(value, "#x")


def _several(values: Iterable[object], depth: int) -> str:
    return ",".join([_text(value, depth) for value in values])


def _sorted(values: Iterable[object], depth: int) -> str:
    return ",".join(sorted(_text(value, depth) for value in values))


def _items(values: Iterable[tuple[object, object]], depth: int) -> list[str]:
    return [f"{_text(key, depth)}:{_text(value, depth)}" for key, value in values]


def _tuple(value: tuple[object, ...], depth: int) -> str:
    return "(" + "".join([f"{_text(one, depth)}," for one in tuple.__iter__(value)]) + ")"


def _dict(value: dict[object, object], depth: int) -> str:
    return "{" + ",".join(sorted(_items(dict.items(value), depth))) + "}"


def _datetime(value: datetime.datetime, _: int) -> str:
    offset = value.utcoffset()
    naive = datetime.datetime.combine(datetime.datetime.date(value), datetime.datetime.time(value))
    if offset is None:
        return f"datetime({naive.isoformat()}{',fold=1' if value.fold else ''})"
    try:
        return f"datetime({(naive - offset).isoformat()}Z)"
    except OverflowError:  # an instant just outside of the years 1 to 9999
        microsecond = datetime.timedelta(microseconds=1)
        return f"datetime({(naive - datetime.datetime.min) // microsecond - offset // microsecond}Z)"


def _time(value: datetime.time, depth: int) -> str:
    zone = value.tzinfo
    fold = ",fold=1" if value.fold else ""
    text = datetime.time.isoformat(value.replace(tzinfo=None))
    return f"time({text}{fold})" if zone is None else f"time({text}{fold},{_text(zone, depth)})"


def _timedelta(value: datetime.timedelta, _: int) -> str:
    return f"timedelta({value.days},{value.seconds},{value.microseconds})"


def _decimal(value: decimal.Decimal, _: int) -> str:
    return f"Decimal({decimal.Decimal.__str__(value).upper()})"  # whether it writes E or e is a setting of the thread


def _zone(value: zoneinfo.ZoneInfo, _: int) -> str:
    if value.key is None:
        _refuse(value, "a zone without a name has only rules to go by")
    return f"ZoneInfo({value.key!a})"


def _writer_of_str(kind: type) -> _Writer:
    return lambda value, _: f"{kind.__name__}({str(value)!a})"


_WRITERS: dict[type, _Writer] = {
    str: lambda value, _: ascii(str.__str__(value)),
    int: _int,
    float: lambda value, _: float.__repr__(value),
    bytes: lambda value, _: bytes.__repr__(value),
    bytearray: lambda value, _: f"bytearray({bytes(value)!r})",
    complex: lambda value, _: f"complex({value.real!r},{value.imag!r})",
    types.EllipsisType: lambda value, _: "...",
    list: lambda value, depth: f"[{_several(list.__iter__(value), depth)}]",
    tuple: _tuple,
    set: lambda value, depth: f"set({_sorted(set.__iter__(value), depth)})",
    frozenset: lambda value, depth: f"frozenset({_sorted(frozenset.__iter__(value), depth)})",
    dict: _dict,
    collections.OrderedDict: lambda value, depth: f"OrderedDict({','.join(_items(value.items(), depth))})",
    collections.defaultdict: lambda value, depth: (
        f"defaultdict({_text(value.default_factory, depth)},{_dict(value, depth)})"
    ),
    types.MappingProxyType: lambda value, depth: f"mappingproxy({','.join(sorted(_items(value.items(), depth)))})",
    collections.deque: lambda value, depth: f"deque([{_several(value, depth)}],{_text(value.maxlen, depth)})",
    range: lambda value, depth: f"range({_several((value.start, value.stop, value.step), depth)})",
    slice: lambda value, depth: f"slice({_several((value.start, value.stop, value.step), depth)})",
    datetime.datetime: _datetime,
    datetime.date: lambda value, _: f"date({datetime.date.isoformat(value)})",
    datetime.time: _time,
    datetime.timedelta: _timedelta,
    datetime.timezone: lambda value, _: ascii(value),
    zoneinfo.ZoneInfo: _zone,
    uuid.UUID: lambda value, _: f"UUID({value.int:032x})",
    decimal.Decimal: _decimal,
    fractions.Fraction: lambda value, _: f"Fraction({_int(value.numerator)},{_int(value.denominator)})",
    **{
        kind: _writer_of_str(kind)
        for kind in (
            *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath),
            *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
            *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
        )
    },
}
"""How each type is written, exact or as a base. Builtin names have no dot before their bracket; classes have one."""


def _object(value: Any, kind: type, depth: int) -> str:
    """Write what is not exactly of a type in the table."""
    if hasattr(kind, "__cache_key__"):
        return f"{_class_name(kind)}({_text(value.__cache_key__(), depth)})"
    if issubclass(kind, type):
        return f"type({_class_name(value)})"
    if issubclass(kind, enum.Flag):  # a combination has no name of its own
        return f"{_class_name(kind)}[{_text(value._value_, depth)}]"
    if issubclass(kind, enum.Enum):
        return f"{_class_name(kind)}[{value._name_!a}]"
    if kind.__module__ == "msgspec" and kind.__qualname__ == "UnsetType":
        return "msgspec.UNSET"
    if hasattr(kind, "__mapper__"):
        _refuse(value, "it is an ORM object, whose data was read before the call: pass its primary key")
    for base in kind.__mro__:
        if base in _WRITERS:
            return f"{_class_name(kind)}({_WRITERS[base](value, depth)}{_state(value, kind, base, depth)})"
    fields = _fields(value, kind)
    if fields is None:
        _refuse(value, "it is not a value: nothing in it is the same in every process")
    return f"{_class_name(kind)}({','.join(_named(name, one, depth) for name, one in fields)})"


def _named(name: str, value: object, depth: int) -> str:
    shown = name if name.isascii() and name.isidentifier() else ascii(name)
    return f"{shown}={_text(value, depth)}"


def _fields(value: Any, kind: type) -> list[tuple[str, object]] | None:
    """Give names and values of what a class declares as its fields; None if it declares none."""
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__pydantic_fields__"):
        present, extra = vars(value), value.__pydantic_extra__ or {}
        declared = [(name, present[name]) for name in kind.__pydantic_fields__ if name in present]
        return declared + [(f"+{name}", extra[name]) for name in sorted(extra)]
    elif hasattr(kind, "__struct_fields__"):
        names = list(kind.__struct_fields__)
    elif hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]
    else:
        return None
    for name in names:
        if not hasattr(value, name):
            _refuse(value, f"its field {name!r} is not set")
    return [(name, getattr(value, name)) for name in names]


def _state(value: Any, kind: type, base: type, depth: int) -> str:
    """Write the attributes that an instance has beside what its base holds (a `str` with a language, say)."""
    own = kind.__mro__[: kind.__mro__.index(base)]
    if any(not one.__flags__ & _HEAP_TYPE and one.__basicsize__ > base.__basicsize__ for one in own):
        if base is uuid.UUID:  # drivers have their own, which hold the same number
            return ""
        _refuse(value, f"it is a {base.__name__} that keeps more than that where it can't be seen")
    state = object.__getstate__(value)
    parts: tuple[Any, ...] = state if isinstance(state, tuple) else (state,)
    attributes: dict[str, object] = {name: one for part in parts if part for name, one in part.items()}
    of_the_base = set(copyreg._slotnames(base))  # type: ignore[attr-defined]
    written = [
        _named(name, attributes[name], depth)
        for name in sorted(attributes.keys() - of_the_base)
        if not isinstance(getattr(kind, name, None), functools.cached_property)
    ]
    return "".join(f",{one}" for one in written)


def _class_name(kind: type) -> str:
    generic = vars(kind).get("__pydantic_generic_metadata__")
    if generic and generic["origin"] is not None:
        return f"{_class_name(generic['origin'])}[{','.join(map(_type_argument, generic['args']))}]"
    name = f"{kind.__module__}.{kind.__qualname__}"
    if "<locals>" in name:
        raise UnstableArgumentError(f"the class {name} is made in a function, so that others may have its name")
    if not _CLASS_NAME.fullmatch(name):
        raise UnstableArgumentError(f"the class {name} has a name that others may have")
    return name if name.isascii() else name.encode("ascii", "backslashreplace").decode()


def _type_argument(argument: Any) -> str:
    origin = typing.get_origin(argument)
    if isinstance(origin, type):
        return f"{_class_name(origin)}[{','.join(map(_type_argument, typing.get_args(argument)))}]"
    if argument is None or isinstance(argument, type):
        return "None" if argument is None else _class_name(argument)
    raise UnstableArgumentError(f"its class has the type argument {reprlib.repr(argument)}, which has no stable text")


def _refuse(value: object, why: str) -> NoReturn:
    raise UnstableArgumentError(f"a value of type {full_name(type(value))} has none, since {why}")


def full_name(kind: type) -> str:
    """The name of a type as an error says it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
