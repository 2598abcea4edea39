"""Keys: the name of a function and the text of its arguments, the same in every process.

Two values that differ, or whose types differ, never have one text; what has no text that is the same in every process
is refused. Texts are ASCII: what is printable depends on the version of Python, and so does `repr` of other text.
"""

import collections
import copyreg
import dataclasses
import datetime
import decimal
import difflib
import enum
import fractions
import functools
import hashlib
import inspect
import ipaddress
import pathlib
import re
import reprlib
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

from asynctag.errors import ConfigurationError, InvalidKeyError, UnstableArgumentError

MAX_KEY_BYTES = 1024
MAX_NAME_LENGTH = 200
MAX_ARGUMENTS_LENGTH = 200
MAX_DEPTH = 100

KeyMaker: TypeAlias = Callable[..., str]
"""Takes what the function takes; gives the key."""

_PLAIN = frozenset({str, int, bool, types.NoneType, float, bytes})
_SURELY_PRINTABLE_BITS = 2000
"""Below the smallest limit that an interpreter may have on the digits of an int."""
_HEAP_TYPE = 1 << 9
_CLASS_NAME = re.compile(r"[\w.\-]+")
_REFUSED_IN_NAMES = re.compile(r"[|@()\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_VERSION = re.compile(r"[\w.+\-]{1,50}")


def check_key(key: object) -> str:
    """Give a user's own key back as a plain `str`; raise `InvalidKeyError` if it cannot be one."""
    if type(key) is str and key and len(key) <= MAX_KEY_BYTES and key.isascii():
        return key
    if isinstance(key, enum.Enum):
        raise InvalidKeyError(f"{reprlib.repr(key)} is not a key: it is a member of an enum. Write its `.value`")
    if not isinstance(key, str):
        raise InvalidKeyError(f"{reprlib.repr(key)} is not a key: a key is a str, not {_shown(type(key))}")
    text = str.__str__(key)
    if not text:
        raise InvalidKeyError("'' is not a key: it is empty. Say what the entry holds, as in 'product-list'")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidKeyError(
            f"{reprlib.repr(text)} is not a key: it has a lone surrogate. Decode the text properly first"
        ) from None
    if size > MAX_KEY_BYTES:
        raise InvalidKeyError(
            f"{reprlib.repr(text)} is not a key: it has {size} bytes of UTF-8, and at most {MAX_KEY_BYTES} are allowed."
            " Use a hash of it"
        )
    return text


def function_name(fn: Callable[..., object], name: str | None) -> str:
    """Name a function for its keys: `name`, or module and qualified name where those name one function only."""
    if name is not None:
        if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or _REFUSED_IN_NAMES.search(name):
            raise ConfigurationError(
                f"name={reprlib.repr(name)} cannot name a function: give text of 1 to {MAX_NAME_LENGTH} characters,"
                " without any of | @ ( ) and control characters"
            )
        return str.__str__(name)
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise ConfigurationError(f'{reprlib.repr(fn)} has no qualified name: give one with name="..."')
    if "<" in qualname:
        raise ConfigurationError(
            f"{module}.{qualname} is no name of one function: two closures (or lambdas) share a qualified name, and"
            ' would be served each other\'s values. Give one with name="..."'
        )
    if module == "__main__":
        raise ConfigurationError(
            f"{qualname} is in __main__, which is another module in every program: two closures or functions that share"
            ' a qualified name would be served each other\'s values. Give one with name="..."'
        )
    return f"{module}.{qualname}"


def build_key_maker(
    fn: Callable[..., object],
    *,
    name: str,
    exclude: Collection[str] = (),
    key: Callable[..., object] | None = None,
    version: str | int | None = None,
) -> KeyMaker:
    """Make a function with the parameters of `fn` that gives the key of a call: `shop.product(635)`.

    Python itself binds the arguments, so every spelling of a call has one key, and a wrong call its usual `TypeError`.
    `exclude` names parameters to leave out. `key` is a plain function of some of the parameters, whose result stands
    for all of them. `name` is what `function_name` gave; with `version=2` the key is `shop.product@2(635)`.
    """
    parameters = inspect.signature(fn).parameters
    _check_exclude(exclude, parameters, name)
    head = f"{name}{_version_mark(version, name)}("
    longest = len(head) + MAX_ARGUMENTS_LENGTH + 1
    p = _free_prefix(parameters)
    helpers: dict[str, object] = {
        f"{p}text": _argument_text(name),
        f"{p}long": functools.partial(_hashed, head),
        f"{p}type": type,
        f"{p}len": len,
        f"{p}plain": _PLAIN,
    }
    used = [parameter for parameter in parameters.values() if parameter.name not in exclude]
    names = [parameter.name for parameter in used]
    finish = f"return {p}key if {p}len({p}key) <= {longest} else {p}long({p}key)"
    if key is not None:
        given = ", ".join(f"{one}={one}" for one in _wanted_by(key, parameters, name))
        helpers |= {f"{p}made": key, f"{p}text": _made_text(name)}
        lines = [f"{p}key = {head!a} f'{{{p}text({p}made({given}))}}' ')'", finish]
    elif not used:
        lines = [f"return {head + ')'!a}"]
    else:
        slow = ",".join(f'{{{p}text({one}, "{one}")}}' for one in names)
        lines = [f"{p}key = {head!a} f'{slow}' ')'", finish]
        if all(parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in used):
            plain = ",".join(f"{{{one}!a}}" for one in names)
            lines = [
                f"if {' and '.join(f'{p}type({one}) in {p}plain' for one in names)}:",
                "    try:",
                f"        {p}key = {head!a} f'{plain}' ')'",
                f"        {finish}",
                "    except ValueError:",  # an int with thousands of digits, which has a text only in hex
                "        pass",
                *lines,
            ]
    return _function(fn, parameters, lines, helpers)


def build_binder(fn: Callable[..., object]) -> Callable[..., dict[str, object]]:
    """Make a function with the parameters of `fn` that gives its arguments by name, defaults applied."""
    parameters = inspect.signature(fn).parameters
    arguments = ", ".join(f"{name!a}: {name}" for name in parameters)
    return _function(fn, parameters, [f"return {{{arguments}}}"], {})


def _function(
    fn: Callable[..., object],
    parameters: Mapping[str, inspect.Parameter],
    lines: Iterable[str],
    helpers: dict[str, object],
) -> Callable[..., Any]:
    """Compile a function with these parameters. Of the user's only names are in its source, never values."""
    listed: list[str] = []
    last: inspect.Parameter | None = None
    for parameter in parameters.values():
        if last is not None and last.kind is last.POSITIONAL_ONLY and parameter.kind is not last.kind:
            listed.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY and (last is None or last.kind < last.VAR_POSITIONAL):
            listed.append("*")
        stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        listed.append(stars + parameter.name)
        last = parameter
    if last is not None and last.kind is last.POSITIONAL_ONLY:
        listed.append("/")
    body = "".join(f"    {line}\n" for line in lines)
    module = compile(f"def made({', '.join(listed)}):\n{body}", "<asynctag.keys>", "exec", dont_inherit=True)
    code = next(const for const in module.co_consts if isinstance(const, types.CodeType))
    defaults = {one.name: one for one in parameters.values() if one.default is not one.empty}
    positional = tuple(one.default for one in defaults.values() if one.kind is not one.KEYWORD_ONLY)
    made = types.FunctionType(code, helpers, getattr(fn, "__name__", "made"), positional)
    made.__kwdefaults__ = {name: one.default for name, one in defaults.items() if one.kind is one.KEYWORD_ONLY}
    made.__qualname__ = getattr(fn, "__qualname__", made.__name__)
    return made


def _free_prefix(names: Iterable[str]) -> str:
    """Give a prefix that no parameter has, so that a parameter called `len` hides nothing."""
    taken, prefix = list(names), "_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    return prefix


def _hashed(head: str, key: str) -> str:
    arguments = key[len(head) : -1].encode("utf-8", "surrogatepass")
    return f"{head}#{hashlib.blake2b(arguments, digest_size=16).hexdigest()})"


def _argument_text(owner: str) -> Callable[[object, str], str]:
    def text(value: object, parameter: str) -> str:
        try:
            return _text(value, 0)
        except UnstableArgumentError as error:
            raise UnstableArgumentError(
                f"The argument {parameter!r} of {owner}, {_shown(type(value))}, has no stable key: {error}."
                f' Leave it out with exclude={{"{parameter}"}}, make the key of the others yourself with key=, or give'
                " the class a method __cache_key__()"
            ) from None

    return text


def _made_text(owner: str) -> Callable[[object], str]:
    def text(value: object) -> str:
        try:
            return _text(value, 0)
        except UnstableArgumentError as error:
            raise UnstableArgumentError(
                f"The function for key= of {owner} returned {_shown(type(value))}, which has no stable key: {error}."
                " Return strings and numbers, or tuples of them"
            ) from None

    return text


def _check_exclude(exclude: Collection[str], parameters: Mapping[str, object], owner: str) -> None:
    if isinstance(exclude, str):
        raise ConfigurationError(f'exclude= of {owner} is one string: give a set, exclude={{"{exclude}"}}')
    for name in exclude:
        if name not in parameters:
            raise ConfigurationError(
                f"exclude= of {owner} names {name!r}, which is not a parameter. {_the_nearest(name, parameters)}"
            )


def _version_mark(version: object, owner: str) -> str:
    if version is None:
        return ""
    if isinstance(version, str | int) and not isinstance(version, bool | enum.Enum):
        mark = str(version)
        if _VERSION.fullmatch(mark):
            return f"@{mark}"
    raise ConfigurationError(
        f"version={reprlib.repr(version)} of {owner}: give an int, or up to 50 letters, digits and . + - _"
    )


def _wanted_by(key: Callable[..., object], parameters: Mapping[str, object], owner: str) -> list[str]:
    """Give the parameters that a function for `key=` takes by name."""
    what = f"The function for key= of {owner}"
    own_call = getattr(key, "__call__", None)  # noqa: B004 - the method, to look at
    if any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in (key, own_call)):
        raise ConfigurationError(f"{what} is async: a key is made without waiting. Give a plain function")
    try:
        wanted = inspect.signature(key).parameters.values()
    except (TypeError, ValueError):
        raise ConfigurationError(f"{what} has no signature to read: give a lambda that names its parameters") from None
    if any(one.kind is one.VAR_KEYWORD for one in wanted):
        taken = list(parameters)
    else:
        taken = [one.name for one in wanted if one.name in parameters]
    for one in wanted:
        if one.kind is one.POSITIONAL_ONLY:
            raise ConfigurationError(f"{what} takes {one.name!r} by position only: arguments are given by name")
        variadic = one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if one.name not in parameters and one.default is one.empty and not variadic:
            raise ConfigurationError(
                f"{what} takes {one.name!r}, which is not a parameter. {_the_nearest(one.name, parameters)}"
            )
    return taken


def _the_nearest(name: str, names: Iterable[str]) -> str:
    known = list(names)
    if not known:
        return "There are no parameters"
    close = difflib.get_close_matches(name, known, n=1)
    return f"There are: {', '.join(known)}" + (f". Did you mean {close[0]!r}?" if close else "")


# ---- the text of values


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
    if kind in _PLAIN and kind is not int:
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
    raise UnstableArgumentError(f"a value of type {_shown(type(value))} has none, since {why}")


def _shown(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
