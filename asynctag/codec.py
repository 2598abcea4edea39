"""Values to bytes and back, stored only with proof that they come back the same.

A codec belongs to a type. msgspec does the work for plain types; Pydantic's TypeAdapter does it where the annotation
holds a model, with the set of fields kept. Whatever is stored has been decoded once before and compared with the
original, types and values, all the way down: a hit gives what the miss gave, or the store refuses and names the place.
Bytes are never trusted: what does not decode to the type is a CorruptEntryError, which the cache takes for a miss.
"""

import contextlib
import dataclasses
import enum
import functools
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from asynctag.errors import CorruptEntryError, UnsupportedTypeError, ValueNotCacheableError, WindowError
from asynctag.placeholders import Places, is_markup_type, plain
from asynctag.same import AS_ANNOTATED, Trail, difference, first_line, parts, render, short_name, texts
from asynctag.skeleton import MARK, Hole, Skeleton, cut_out, read_skeleton
from asynctag.thaw import ATOMS, Kept, plan, pydantic_base

__all__ = ["NOT_GIVEN", "Codec", "Kept", "codec_for"]


class _NotGiven(enum.Enum):
    NOT_GIVEN = "no annotation"


NOT_GIVEN: Final = _NotGiven.NOT_GIVEN
"""No annotation: values are JSON-like builtins."""

_FREE = (NOT_GIVEN, Any, object)
_WHOLE = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values come back as they are if the annotation names them."""


class Codec:
    """Encodes and decodes the values of one type. Codecs that are one object are of one type."""

    __slots__ = ("_format", "_root", "_whole", "annotation", "with_windows")

    def __init__(self, annotation: object, codec_format: "_Format") -> None:
        self.annotation = annotation
        self._format = codec_format
        named = isinstance(annotation, type) and annotation.__module__ != "builtins"
        self._root = _name(annotation) if named else "value"
        self._whole = _whole_types(annotation)
        #: What the entries of skeletons have as their codec, in this process: their values are not to be given out.
        self.with_windows = WithWindows(self)

    def __repr__(self) -> str:
        return f"<Codec {_name(self.annotation)}>"

    @property
    def is_free(self) -> bool:
        """Whether its values are what they are, with no annotation that says so."""
        return self.annotation is NOT_GIVEN

    def encode(self, value: Any) -> bytes:
        """The value as bytes that are known to come back the same."""
        if type(value) in self._whole:
            return self._dump(value)
        return self._prove(value)[0]

    def decode(self, data: bytes) -> Any:
        """The value of the bytes, or its `Skeleton`; CorruptEntryError if they are anything else."""
        if data[:1] == MARK:
            return read_skeleton(data, self)
        return self._load(data)

    def _load(self, data: bytes) -> Any:
        try:
            return self._format.load(data)
        except Exception as error:  # Validators of users run here, and may raise anything.
            raise CorruptEntryError(f"bytes that are not a {_name(self.annotation)}: {first_line(error)}") from error

    def keep(self, value: Any) -> Kept:
        """The value for a backend in this process: it shares nothing that can be changed with `value`."""
        kind = type(value)
        if kind in self._whole:
            if not (kind is str and value.isascii()) and (kind is str or kind is int):
                self._dump(value)
            return Kept(value, None, sys.getsizeof(value))
        if kind is Skeleton:
            return Kept(value, None, value.size)
        data, decoded = self._prove(value)
        kept = plan(decoded)
        return Kept(data, self.decode, sys.getsizeof(data)) if kept is None else kept

    # --- values with windows -------------------------------------------------------------------------

    def skeleton(self, value: Any, places: Places) -> Skeleton | None:
        """The value as it is kept if windows of `places` stand in it. Raises `WindowError` where one was cut."""
        if type(value) in (str, bytes) and type(value) in self._whole:
            segments = places.split(value, lambda: self._root)
            if segments is None:
                return None
            self._dump(value)  # what no bytes are, is refused as it is without windows
            return Skeleton(self, b"", b"", (Hole((), *segments),))
        data, decoded = self._prove(value, places.plain)
        standing = sum(map(places.stands_in, texts(decoded))) if self._format.may_hide else 0
        if not standing and not places.stands_in(data):
            return None
        try:
            way, tree = self._format.tree(data)
            same = difference(decoded, self.of_tree(way, tree)) is None
        except (CorruptEntryError, TypeError, ValueError, msgspec.MsgspecError) as error:
            raise self._refusal(self._root, f"it holds windows, and {first_line(error)}", _FOR_WINDOWS) from error
        if not same:
            raise self._refusal(self._root, "it holds windows, and what plain data does not hold", _FOR_WINDOWS)
        tree, holes = cut_out(tree, places, self._root)
        if not holes or len(holes) < standing:
            raise WindowError(
                f"{self._root}: a window stands where no text is written (in base64, say): place it in a str"
            )
        return Skeleton(self, way, self._format.pack(tree) if holes[0].path else b"", holes)

    def tree(self, data: bytes) -> Any:
        """The plain data of a skeleton's `tree`, anew. Raises what the decoder does."""
        return self._format.unpack(data)

    def of_tree(self, way: bytes, tree: Any) -> Any:
        """The value that `tree` is as plain data; CorruptEntryError if there is none."""
        if self.is_free:
            return tree
        try:
            data = self._format.of_tree(way, tree)
        except Exception as error:
            raise CorruptEntryError(f"plain data that is no {_name(self.annotation)}: {first_line(error)}") from error
        return self._load(data)

    def of_text(self, way: bytes, text: Any) -> Any:
        """The value that a text is, or whatever a window returned in the place of one."""
        return text if type(text) in self._whole else self.of_tree(way, text)

    # --- the proof -----------------------------------------------------------------------------------

    def _prove(self, value: Any, hook: "Hook" = plain) -> tuple[bytes, Any]:
        try:
            first, *others = self._format.ways(value)
        except RecursionError as error:
            raise self._refusal(self._root, "is nested too deeply, or holds itself", "flatten it") from error
        try:
            return self._prove_way(value, first, hook)
        except ValueNotCacheableError:
            for way in others:
                with contextlib.suppress(ValueNotCacheableError):
                    return self._prove_way(value, way, hook)
            raise

    def _prove_way(self, value: Any, way: bytes, hook: "Hook") -> tuple[bytes, Any]:
        data = self._dump(value, way, hook)
        try:
            decoded = self._format.load(data)
        except RecursionError as error:
            raise self._refusal(self._root, "is nested too deeply", "flatten it") from error
        except Exception as error:
            said = f"the value is not a {_name(self.annotation)} once encoded ({self._format.explain(error)})"
            raise self._refusal(self._root + self._format.place(error), said, self._format.advice) from error
        try:
            found = difference(value, decoded)
        except RecursionError as error:
            raise self._refusal(self._root, "is nested too deeply, or holds itself", "flatten it") from error
        if found is not None:
            raise self._refusal(self._root + found.path, found.said, self._advice(found.was, found.advice))
        return data, decoded

    def _dump(self, value: Any, way: bytes = b"", hook: "Hook" = plain) -> bytes:
        try:
            return self._format.dump(value, way, hook)
        except WindowError:
            raise
        except RecursionError as error:
            raise self._refusal(self._root, "is nested too deeply, or holds itself", "flatten it") from error
        except Exception as error:  # Serializers and properties of users run here.
            path, culprit = self._format.culprit(value, hook)
            said = f"{short_name(type(culprit))} cannot be encoded ({first_line(error)})"
            advice = self._advice(culprit, self._format.advice)
            raise self._refusal(self._root + path, said, advice) from error

    def _advice(self, culprit: object, otherwise: str) -> str:
        if type(culprit) is int and not -(2**63) <= culprit < 2**64:
            return "integers have 64 bits: keep it as a string"
        if isinstance(culprit, str):
            return otherwise
        if self.annotation is NOT_GIVEN:
            return "without an annotation values are JSON-like builtins: annotate the return type, or pass returns="
        return otherwise

    @staticmethod
    def _refusal(path: str, said: str, advice: str) -> ValueNotCacheableError:
        return ValueNotCacheableError(f"{path}: {said}; {advice}", path)


class WithWindows:
    """Stands where the codec would in entries of this process that hold skeletons: no value of its own is there."""

    __slots__ = ("codec",)

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def encode(self, value: Skeleton) -> bytes:
        return value.encode()


# Formats

_FOR_WINDOWS: Final = "place them in a str, or in dicts and lists of plain values"

#: Makes plain text of what no format knows; TypeError where it cannot.
Hook: typing.TypeAlias = Callable[[Any], str]


class _Format(typing.Protocol):
    advice: str
    #: Whether a text may be written in another way than as text.
    may_hide: bool

    def ways(self, value: Any) -> Sequence[bytes]:
        """The ways to write a value, the best one first."""
        ...

    def dump(self, value: Any, way: bytes, hook: Hook) -> bytes: ...
    def load(self, data: bytes, /) -> Any: ...

    def tree(self, data: bytes) -> tuple[bytes, Any]:
        """What was dumped, as plain data, and what `of_tree` makes the same of it by."""
        ...

    def of_tree(self, way: bytes, tree: Any) -> bytes: ...
    def pack(self, tree: Any, /) -> bytes: ...
    def unpack(self, data: bytes, /) -> Any: ...

    def culprit(self, value: Any, hook: Hook) -> tuple[str, object]:
        """The innermost part of a value that cannot be written, and the path to it, if that can be found out."""
        ...

    def place(self, error: Exception) -> str: ...
    def explain(self, error: Exception) -> str: ...


class _MessagePack:
    advice = AS_ANNOTATED
    may_hide = False

    def __init__(self, annotation: object) -> None:
        kind: Any = Any if annotation is NOT_GIVEN else annotation
        self._encode = msgspec.msgpack.Encoder(enc_hook=plain).encode
        self.load = msgspec.msgpack.Decoder(kind, ext_hook=_no_extension, dec_hook=_of_plain_text).decode
        self.pack = self._encode
        self.unpack = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode

    def ways(self, value: Any) -> Sequence[bytes]:
        return (b"",)

    def dump(self, value: Any, way: bytes, hook: Hook) -> bytes:
        return self._encode(value) if hook is plain else msgspec.msgpack.encode(value, enc_hook=hook)

    def tree(self, data: bytes) -> tuple[bytes, Any]:
        return b"", self.unpack(data)

    def of_tree(self, way: bytes, tree: Any) -> bytes:
        return self._encode(tree)

    def culprit(self, value: Any, hook: Hook) -> tuple[str, object]:
        trail: Trail = None
        for _ in range(64):  # A value may hold itself.
            for prefix, key, part in parts(value):
                if not self._writes(part, hook):
                    trail, value = (trail, prefix, key), part
                    break
            else:
                break
        return render(trail), value

    def _writes(self, value: Any, hook: Hook) -> bool:
        try:
            self.dump(value, b"", hook)
        except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, msgspec.MsgspecError):
            return False
        return True

    def place(self, error: Exception) -> str:
        found = re.search(r" - at `(?:key in )?\$(.*)`$", str(error))
        return found[1] if found else ""

    def explain(self, error: Exception) -> str:
        return re.sub(r" - at .*", "", first_line(error))


def _no_extension(code: int, data: memoryview) -> NoReturn:
    raise ValueError("an extension type")


def _of_plain_text(kind: type, text: object) -> Any:
    """A value of a type that stands for itself as plain text: markupsafe's Markup. `object` comes here too."""
    if not is_markup_type(kind):
        return text
    if not isinstance(text, str):
        raise TypeError(f"{short_name(type(text))} instead of text")
    return kind(text)


class _Json:
    """Pydantic's JSON. The first byte says which way it was written.

    `n`: field names, set fields only. `f`: all fields, with the set ones listed beside them, for defaults that are new
    each time or were changed in place. `a`: aliases, for models that look at their raw input.
    """

    advice = (
        f"{AS_ANNOTATED}; bytes and infinite floats need ser_json_bytes, val_json_bytes and ser_json_inf_nan in the"
        " model's config"
    )
    may_hide = True

    def __init__(self, annotation: object) -> None:
        from pydantic import TypeAdapter

        kind: Any = annotation
        self._adapter: Any = TypeAdapter(kind)
        self._sets = msgspec.msgpack.Decoder(tuple[bytes, list[list[str]]])
        self.pack = msgspec.json.encode
        self.unpack = msgspec.json.decode

    def ways(self, value: Any) -> Sequence[bytes]:
        """A default made anew may be another one tomorrow, so it is written where a model has one."""
        renewed = any(_made_anew(model.__class__) - model.__pydantic_fields_set__ for model in _models(value))
        return (b"f", b"a") if renewed else (b"n", b"f", b"a")

    def dump(self, value: Any, way: bytes, hook: Hook) -> bytes:
        # No warnings: the comparison that follows finds more than they say, and where.
        unset, alias = way != b"f", way == b"a"
        text: bytes = self._adapter.dump_json(
            value, round_trip=True, exclude_unset=unset, by_alias=alias, warnings=False
        )
        if way == b"f":
            text = msgspec.msgpack.encode((text, [sorted(model.__pydantic_fields_set__) for model in _models(value)]))
        return way + text

    def tree(self, data: bytes) -> tuple[bytes, Any]:
        way, text = data[:1], data[1:]
        if way != b"f":
            return way, msgspec.json.decode(text)
        text, sets = self._sets.decode(text)
        return way + msgspec.msgpack.encode(sets), msgspec.json.decode(text)

    def of_tree(self, way: bytes, tree: Any) -> bytes:
        text, way, sets = msgspec.json.encode(tree, enc_hook=plain), way[:1], way[1:]
        return way + (msgspec.msgpack.encode((text, msgspec.msgpack.decode(sets))) if sets else text)

    def culprit(self, value: Any, hook: Hook) -> tuple[str, object]:
        return "", value

    def load(self, data: bytes) -> Any:
        way, text = data[:1], data[1:]
        if way == b"n":
            return self._adapter.validate_json(text, by_alias=False, by_name=True)
        if way == b"a":
            return self._adapter.validate_json(text)
        if way != b"f":
            raise ValueError("neither of the ways in which models are written")
        text, sets = self._sets.decode(text)
        value = self._adapter.validate_json(text, by_alias=False, by_name=True)
        for model, names in zip(_models(value), sets, strict=True):
            if not model.__pydantic_fields_set__.issuperset(names):
                raise ValueError("a field that the model does not have")
            object.__setattr__(model, "__pydantic_fields_set__", set(names))
        return value

    def place(self, error: Exception) -> str:
        first = self._first(error)
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first.get("loc", ()))

    def explain(self, error: Exception) -> str:
        return str(self._first(error).get("msg") or first_line(error))

    @staticmethod
    def _first(error: Exception) -> dict[str, Any]:
        errors = getattr(error, "errors", None)
        found: Any = errors(include_url=False) if callable(errors) else [{}]
        return dict(found[0])


@functools.lru_cache(maxsize=512)
def _made_anew(model: Any) -> frozenset[str]:
    fields = model.__pydantic_fields__.items()
    return frozenset(name for name, field in fields if field.default_factory not in (None, list, dict, set))


def _models(value: Any) -> Iterator[Any]:
    """The models in a value, outer ones first, in an order that a copy of it shares. Those in sets are left out."""
    base = pydantic_base()
    if base is not None and isinstance(value, base):
        yield value
    if not isinstance(value, (set, frozenset)):
        for _, _, part in parts(value):
            if type(part) not in ATOMS:
                yield from _models(part)


# From annotations to codecs

MAX_CODECS = 1024

_CODECS: dict[object, Codec] = {}


def codec_for(annotation: object, *, owner: str) -> Codec:
    """The codec of a type; UnsupportedTypeError, naming the owner, if its values cannot be kept."""
    if annotation in _FREE:
        annotation = NOT_GIVEN
    elif annotation is None:
        annotation = type(None)
    try:
        key = _identity(annotation)
        found = _CODECS.get(key)
    except TypeError:  # Not hashable.
        return _make(annotation, owner)
    if found is None:
        while len(_CODECS) >= MAX_CODECS:  # types that are made anew for each call
            _CODECS.pop(next(iter(_CODECS)), None)
        found = _CODECS.setdefault(key, _make(annotation, owner))
    return found


def _identity(annotation: object) -> object:
    """A key that tells apart what `==` does not: the order of a union, 1 and True, two markers of `Annotated`."""
    if isinstance(annotation, type):
        return annotation
    origin: object = typing.get_origin(annotation)
    if origin is None:
        return type(annotation), annotation
    if origin is typing.Annotated:
        inner, *marks = typing.get_args(annotation)
        return origin, _identity(inner), tuple(id(mark) for mark in marks)  # The codec keeps the marks alive.
    return origin, tuple(_identity(argument) for argument in typing.get_args(annotation))


def _make(annotation: object, owner: str) -> Codec:
    if annotation is NOT_GIVEN:
        return Codec(annotation, _MessagePack(annotation))
    survey = _Survey(annotation, owner)
    survey.visit(annotation)
    try:
        if survey.pydantic:
            return Codec(annotation, _Json(annotation))
        for custom in _customs(msgspec.inspect.type_info(annotation), {}):
            survey.refuse(f"nothing says how to make {_name(custom)} from plain data")
        return Codec(annotation, _MessagePack(annotation))
    except UnsupportedTypeError:
        raise
    except Exception as error:  # The hooks of other libraries' types run here.
        survey.refuse(first_line(error), error)


class _Survey:
    """A walk over an annotation, into the fields of its classes: finds models, and what cannot be kept."""

    def __init__(self, annotation: object, owner: str) -> None:
        self.annotation = annotation
        self.owner = owner
        self.pydantic = False
        self.seen: dict[int, object] = {}

    def refuse(self, why: str, cause: Exception | None = None) -> NoReturn:
        raise UnsupportedTypeError(
            f"{self.owner}: values of {_name(self.annotation)} cannot be cached: {why.rstrip('.')}."
            " Return plain data, such as a dataclass or a Pydantic model, or name another type with returns="
        ) from cause

    def visit(self, part: Any, of_field: bool = False) -> None:
        if id(part) in self.seen:
            return
        self.seen[id(part)] = part
        origin: Any = typing.get_origin(part)
        if isinstance(part, TypeVar):
            if not of_field:  # Those of a generic class stand for the arguments, which are visited, or for anything.
                self.refuse(f"{part} is a bare type variable, which names no type")
        elif isinstance(part, (str, typing.ForwardRef)):
            self.refuse(f"the name {_name(part)} is not resolved")
        elif getattr(part, "__name__", "") == "Self" and getattr(part, "__module__", "").startswith("typing"):
            self.refuse("Self names no class here")
        elif hasattr(part, "__supertype__"):
            self.visit(part.__supertype__, of_field)
        elif origin is typing.Annotated:
            self.visit(typing.get_args(part)[0], of_field)
        elif origin is not typing.Literal:
            self.visit_plain(origin or part, of_field or origin is not None)
            for argument in typing.get_args(part):
                self.visit(argument, of_field)

    def visit_plain(self, part: Any, of_field: bool) -> None:
        if type(part).__name__ == "TypeAliasType":
            self.visit(part.__value__, of_field)
        elif isinstance(part, type):
            self.visit_class(part)

    def visit_class(self, cls: type) -> None:
        if any(hasattr(cls, name) for name in _ORM_MARKS):
            self.refuse(f"{_name(cls)} is an ORM class, whose objects belong to a session")
        response = getattr(sys.modules.get("starlette.responses"), "Response", None)
        if response is not None and issubclass(cls, response):
            self.refuse(f"{_name(cls)} is a response: cache the data that it is made of, or use cache_response")
        if cls in _FUNCTIONS:
            self.refuse("a function cannot be kept")
        if issubclass(cls, (abc.Iterator, abc.AsyncIterable)) or cls is abc.Iterable:
            self.refuse(f"{_name(cls)} can be read only once: return a list")
        if issubclass(cls, abc.Awaitable):
            self.refuse(f"{_name(cls)} can be awaited only once: return its result")
        if hasattr(cls, "__pydantic_validator__") or hasattr(cls, "__get_pydantic_core_schema__"):
            self.pydantic = True
        elif (
            dataclasses.is_dataclass(cls)
            or typing.is_typeddict(cls)
            or hasattr(cls, "__attrs_attrs__")
            or issubclass(cls, msgspec.Struct)
            or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
            or type(cls).__name__ == "_TypedDictMeta"
        ):
            try:
                hints = typing.get_type_hints(cls, include_extras=True)
            except Exception as error:
                self.refuse(f"the annotations of {_name(cls)} cannot be resolved ({first_line(error)})", error)
            for hint in hints.values():
                if typing.get_origin(hint) not in _NO_FIELD:
                    self.visit(hint, of_field=True)


_NO_FIELD: Final[tuple[object, ...]] = (typing.ClassVar,)
_FUNCTIONS: Final[tuple[object, ...]] = (abc.Callable, types.FunctionType)
_ORM_MARKS: Final = ("__mapper__", "__sa_instrumentation_manager__", "_sa_class_manager")


def _customs(info: Any, seen: dict[int, object]) -> Iterator[type]:
    """The classes in msgspec's description of a type that it leaves to hooks, or gives out as views of the bytes."""
    if id(info) in seen:
        return
    seen[id(info)] = info
    if isinstance(info, msgspec.inspect.CustomType):
        if info.cls is not object and not is_markup_type(info.cls):
            yield info.cls
    elif isinstance(info, msgspec.inspect.RawType):
        yield msgspec.Raw
    elif isinstance(info, msgspec.inspect.MemoryViewType):
        yield memoryview
    elif isinstance(info, tuple):
        for part in info:
            yield from _customs(part, seen)
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in info.__struct_fields__:
            if name not in ("default", "default_factory"):
                yield from _customs(getattr(info, name), seen)


def _whole_types(annotation: object) -> frozenset[type]:
    if annotation is NOT_GIVEN:
        return _WHOLE
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    whole = {part for part in parts if isinstance(part, type)}
    return frozenset(whole) if len(whole) == len(parts) and whole <= _WHOLE else frozenset()


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _name(annotation: object) -> str:
    if annotation is NOT_GIVEN:
        return "JSON-like value"
    if isinstance(annotation, type):
        return short_name(annotation)
    return repr(annotation).replace("typing.", "")
