"""Fresh copies of a decoded value, faster than decoding it again.

`plan(value)` looks at a value once, when it is stored, and gives what a hit needs: the value itself if nothing in it
can be changed, or templates and a function that copies them. None means that decoding the bytes is the better or the
only safe way: too many containers, or an object whose copy might differ from what decoding makes.

A template is the container as it is copied, with None in the places that are filled by a copy of their own; `subs` says
which. Every copying function takes one argument, so that `dict.copy` of a flat dict is one of them.
"""

import datetime
import decimal
import enum
import fractions
import functools
import re
import sys
import types
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

__all__ = ["ATOMS", "MAX_CONTAINERS", "Kept", "attributes", "is_atom", "plan", "pydantic_base"]

MAX_CONTAINERS = 32
"""Above this many mutable containers, bytes are smaller by far and weigh nothing on the garbage collector."""

Run = Callable[[Any], Any]
Subs = tuple[tuple[Any, Run, Any], ...]
"""(key or index, how to copy, what to copy)"""


class Kept(NamedTuple):
    """A value as a backend in this process keeps it. No `thaw`: `body` cannot change and is given out as it is."""

    body: Any
    thaw: Run | None
    size: int


# Types whose values cannot change, whatever they hold.
ATOMS: frozenset[type] = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, range,
        datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
        decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, msgspec.UnsetType,
    }
)  # fmt: skip
_ATOM_MODULES = frozenset({"ipaddress", "markupsafe", "pathlib", "pathlib._local", "zoneinfo"})
_HEAP_TYPE = 1 << 9
_MODEL_SLOTS = {"__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"}

_new: Any = object.__new__


class _UnplannableError(Exception):
    """Decode this one."""


def plan(value: Any, limit: int = MAX_CONTAINERS) -> Kept | None:
    """How to keep a decoded value that nobody else holds; None if only decoding will do."""
    planner = _Planner(limit)
    try:
        run, node = planner.visit(value)
    except _UnplannableError:
        return None
    return Kept(node, run, planner.size)


def is_atom(value: Any) -> bool:
    """A value that cannot change and has no parts of its own."""
    cls = type(value)
    return cls in ATOMS or isinstance(value, enum.Enum) or cls.__module__ in _ATOM_MODULES


def is_immutable(value: Any) -> bool:
    """An atom, or a tuple or frozenset of such: what holds it is sure to find it as it was."""
    return is_atom(value) or (type(value) in (tuple, frozenset) and all(map(is_immutable, value)))


@functools.lru_cache(maxsize=512)
def slots_of(cls: type) -> tuple[tuple[str, Any], ...]:
    """Name and descriptor of every slot that instances have, inherited ones included."""
    return tuple(
        (name, member)
        for base in reversed(cls.__mro__)
        if base.__flags__ & _HEAP_TYPE
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    )


@functools.lru_cache(maxsize=512)
def _derived(cls: type) -> tuple[str, ...]:
    return tuple(
        name
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, functools.cached_property)
    )


def attributes(value: Any) -> dict[str, Any]:
    """What an instance holds, in its `__dict__` and its slots; a cached property is not state, it is computed anew."""
    cls: type = type(value)
    held = dict(getattr(value, "__dict__", ()))
    for name in _derived(cls):
        held.pop(name, None)
    for name, member in slots_of(cls):
        try:
            item = member.__get__(value, cls)
        except AttributeError:  # A slot that was never set.
            continue
        held[name] = item
    return held


def pydantic_base() -> type | None:
    """Pydantic's BaseModel if anything has imported it."""
    return getattr(sys.modules.get("pydantic.main"), "BaseModel", None)


# Copying functions: the hit path.


def _list(node: tuple[list[Any], Subs]) -> list[Any]:
    template, subs = node
    new = template.copy()
    for index, run, sub in subs:
        new[index] = run(sub)
    return new


def _list_alike(node: tuple[Run, list[Any]]) -> list[Any]:
    run, subs = node
    return [*map(run, subs)]


def _dict(node: tuple[dict[Any, Any], Subs]) -> dict[Any, Any]:
    template, subs = node
    new = template.copy()
    for key, run, sub in subs:
        new[key] = run(sub)
    return new


def _tuple(node: tuple[type, Run, Any]) -> Any:
    cls, run, items = node
    return tuple.__new__(cls, run(items))


def _object(node: tuple[type, Callable[[Any, Any], None] | None, dict[str, Any], Subs, Subs]) -> Any:
    cls, set_dict, template, subs, slots = node
    new = _new(cls)
    if set_dict is not None:
        held = template.copy()
        for key, run, sub in subs:
            held[key] = run(sub)
        set_dict(new, held)
    for set_slot, run, sub in slots:
        set_slot(new, run(sub))
    return new


def _struct(node: tuple[Any, Subs]) -> Any:
    template, subs = node
    new = _copy_struct(template)
    for name, run, sub in subs:
        _set_field(new, name, run(sub))
    return new


def _itself(value: Any) -> Any:
    return value


_copy_struct: Run = msgspec.Struct.__copy__  # type: ignore[attr-defined]
_set_field = msgspec.structs.force_setattr


class _ModelCopier:
    """Copies of Pydantic models, made from the four things that a BaseModel holds."""

    def __init__(self, base: type) -> None:
        slots = base.__dict__.get("__slots__", ())
        self.base = base
        self.known = set(slots) == _MODEL_SLOTS and all(name in base.__dict__ for name in slots)
        if not self.known:
            return
        set_dict = base.__dict__["__dict__"].__set__
        set_fields = base.__dict__["__pydantic_fields_set__"].__set__
        set_extra = base.__dict__["__pydantic_extra__"].__set__
        set_private = base.__dict__["__pydantic_private__"].__set__
        new_object = _new

        def flat(node: tuple[type, dict[str, Any], set[str]]) -> Any:
            cls, template, fields_set = node
            new = new_object(cls)
            set_dict(new, template.copy())
            set_fields(new, fields_set.copy())
            set_extra(new, None)
            set_private(new, None)
            return new

        def nested(node: tuple[type, dict[str, Any], set[str], Subs]) -> Any:
            cls, template, fields_set, subs = node
            new = new_object(cls)
            held = template.copy()
            for key, run, sub in subs:
                held[key] = run(sub)
            set_dict(new, held)
            set_fields(new, fields_set.copy())
            set_extra(new, None)
            set_private(new, None)
            return new

        def full(node: tuple[type, Run, Any, set[str], Run, Any, Run, Any]) -> Any:
            cls, run, held, fields_set, run_extra, extra, run_private, private = node
            new = new_object(cls)
            set_dict(new, run(held))
            set_fields(new, fields_set.copy())
            set_extra(new, run_extra(extra))
            set_private(new, run_private(private))
            return new

        self.flat, self.nested, self.full = flat, nested, full

    def takes(self, cls: type) -> bool:
        """A class that adds no slot and no `__new__` of its own to BaseModel."""
        return self.known and cls.__new__ is _new and len(slots_of(cls)) == len(slots_of(self.base))


@functools.lru_cache(maxsize=4)
def _model_copier(base: type) -> _ModelCopier:
    return _ModelCopier(base)


class _Planner:
    """One walk over a value. What it meets twice, a cycle included, is left to decoding, which keeps it one object."""

    def __init__(self, limit: int) -> None:
        self.room = limit
        self.size = 0
        self.seen: set[int] = set()

    def visit(self, value: Any) -> tuple[Run | None, Any]:
        """How to copy the value and what to copy; None and the value itself if nothing in it can be changed."""
        cls = type(value)
        self.size += sys.getsizeof(value)
        if is_atom(value):
            return None, value
        if cls is dict:
            return self.visit_dict(value)
        if cls is list:
            return self.visit_list(value)
        if cls is set or cls is bytearray:
            self.enter(value)
            if cls is set:
                self.all_fixed(value)
            copy: Run = cls.copy
            return copy, copy(value)
        if cls is frozenset:
            self.all_fixed(value)
            return None, value
        if isinstance(value, tuple):
            return self.visit_tuple(value)
        if isinstance(value, msgspec.Struct):
            return self.visit_struct(value)
        base = pydantic_base()
        if base is not None and isinstance(value, base):
            return self.visit_model(value, _model_copier(base))
        if hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__"):
            return self.visit_object(value)
        raise _UnplannableError

    def enter(self, value: Any) -> None:
        self.room -= 1
        if self.room < 0 or id(value) in self.seen:
            raise _UnplannableError
        self.seen.add(id(value))

    def all_fixed(self, values: Iterable[Any]) -> None:
        for value in values:
            if self.visit(value)[0] is not None:
                raise _UnplannableError

    def fill(self, items: Iterable[tuple[Any, Any]], template: Any) -> Subs:
        """Plan the items of a template of ours; those that need a copy leave a gap in it."""
        subs: list[tuple[Any, Run, Any]] = []
        for key, item in items:
            run, node = self.visit(item)
            if run is not None:
                template[key] = None
                subs.append((key, run, node))
        return tuple(subs)

    def visit_dict(self, value: dict[Any, Any]) -> tuple[Run, Any]:
        self.enter(value)
        self.all_fixed(value)
        template = value.copy()
        subs = self.fill(value.items(), template)
        return (_dict, (template, subs)) if subs else (dict.copy, template)

    def visit_list(self, value: list[Any]) -> tuple[Run, Any]:
        self.enter(value)
        template = value.copy()
        subs = self.fill(enumerate(value), template)
        if not subs:
            return list.copy, template
        if len(subs) == len(value) and len({id(run) for _, run, _ in subs}) == 1:
            return _list_alike, (subs[0][1], [sub for _, _, sub in subs])
        return _list, (template, subs)

    def visit_tuple(self, value: tuple[Any, ...]) -> tuple[Run | None, Any]:
        cls = type(value)
        if cls is not tuple and (not hasattr(cls, "_fields") or getattr(value, "__dict__", None)):
            raise _UnplannableError
        items = list(value)
        subs = self.fill(enumerate(value), items)
        if not subs:
            return None, value
        if id(value) in self.seen:
            raise _UnplannableError
        self.seen.add(id(value))
        return _tuple, (cls, _list, (items, subs))

    def visit_struct(self, value: msgspec.Struct) -> tuple[Run | None, Any]:
        cls = type(value)
        if hasattr(value, "__dict__") or hasattr(cls, "__post_init__"):
            raise _UnplannableError
        fields: dict[str, Any] = {}
        subs = self.fill([(name, getattr(value, name)) for name in cls.__struct_fields__], fields)
        if cls.__struct_config__.frozen and not subs:
            return None, value
        self.enter(value)
        template = _copy_struct(value)
        for name in fields:
            _set_field(template, name, None)
        return (_struct, (template, subs)) if subs else (_copy_struct, template)

    def visit_object(self, value: Any) -> tuple[Run | None, Any]:
        cls: type = type(value)
        if cls.__new__ is not _new or any(
            not base.__flags__ & _HEAP_TYPE and base is not object for base in cls.__mro__
        ):
            raise _UnplannableError  # Part of its state may be where no attribute shows it.
        held: dict[str, Any] | None = getattr(value, "__dict__", None)
        template = dict(held or {})
        subs = self.fill(list(template.items()), template)
        slots: list[tuple[Any, Run, Any]] = []
        fixed = True
        for _, member in slots_of(cls):
            try:
                item = member.__get__(value, cls)
            except AttributeError:
                continue
            run, node = self.visit(item)
            fixed = fixed and run is None
            slots.append((member.__set__, run or _itself, node))
        params = cls.__dict__.get("__dataclass_params__")
        if params is not None and params.frozen and not subs and fixed:
            return None, value
        self.enter(value)
        set_dict = None
        if held is not None:
            self.size += sys.getsizeof(template)
            set_dict = _dict_setter(cls)
        return _object, (cls, set_dict, template, subs, tuple(slots))

    def visit_model(self, value: Any, copier: _ModelCopier) -> tuple[Run, Any]:
        cls = type(value)
        if not copier.takes(cls):
            raise _UnplannableError
        self.enter(value)
        fields_set: set[str] = set(value.__pydantic_fields_set__)
        held, extra, private = value.__dict__, value.__pydantic_extra__, value.__pydantic_private__
        self.size += sys.getsizeof(held) + sys.getsizeof(fields_set)
        template = dict(held)
        subs = self.fill(held.items(), template)
        if extra is None and private is None:
            return (copier.nested, (cls, template, fields_set, subs)) if subs else (
                copier.flat, (cls, template, fields_set),
            )  # fmt: skip
        run, node = (_dict, (template, subs)) if subs else (dict.copy, template)
        run_extra, extra = self.visit(extra)
        run_private, private = self.visit(private)
        return copier.full, (
            cls, run, node, fields_set, run_extra or _itself, extra, run_private or _itself, private,
        )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _dict_setter(cls: type) -> Callable[[Any, Any], None]:
    for base in cls.__mro__:
        descriptor = base.__dict__.get("__dict__")
        if isinstance(descriptor, types.GetSetDescriptorType):
            setter: Callable[[Any, Any], None] = descriptor.__set__
            return setter
    raise _UnplannableError
