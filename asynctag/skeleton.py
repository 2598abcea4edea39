"""A value with windows in it, as it is kept: the value without them, and which window stands where.

    0xC1 | way  tree  holes          (the last three as MessagePack)

`tree` is the value as plain data, with the texts that hold windows left empty, as the codec writes that; nothing, where
the value is such a text itself. A hole has the path to its text, the text in parts, and the windows between them: name,
parameters, how the text gets there. 0xC1 begins nothing that a codec writes (MessagePack never uses it), so that no
value can be taken for a skeleton. Whatever is read and is not exactly this is `CorruptEntryError`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from asynctag.errors import CorruptEntryError, WindowError
from asynctag.placeholders import MAX_STEPS, STEPS, Place, Places, as_bytes, as_text
from asynctag.same import Trail, first_line, render

if TYPE_CHECKING:
    from asynctag.codec import Codec

#: What begins a skeleton, and nothing else that is stored.
MARK: Final = b"\xc1"

#: As long as one, for what looks at how long a text is.
_LIKE_A_PLACEHOLDER: Final = Places("").text_of(Place("", b""))

#: What windows returned, by their names and parameters.
Results: TypeAlias = Mapping[tuple[str, bytes], Any]


class Hole(msgspec.Struct, frozen=True, array_like=True):
    """A text of a value in which windows stand, by the keys and indices that lead to it; none, if it is the value."""

    path: tuple[str | int, ...]
    parts: tuple[Any, ...]  # all of them str, or all bytes
    places: tuple[Place, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one window's text and nothing else: any value may stand there then."""
        return self.parts == ("", "") and not self.places[0].how

    def filled(self, results: Results) -> Any:
        values = [results[place.name, place.params] for place in self.places]
        if self.is_whole:
            return values[0]
        texts: list[Any]
        if isinstance(self.parts[0], bytes):
            texts = [as_bytes(value, place) for value, place in zip(values, self.places, strict=True)]
        else:
            texts = [as_text(value, place) for value, place in zip(values, self.places, strict=True)]
        return woven(self.parts, texts)

    def placed(self, places: Places) -> Any:
        return self.with_texts([places.text_of(place) for place in self.places])

    def with_texts(self, texts: Sequence[str]) -> Any:
        return woven(self.parts, [text.encode() for text in texts] if isinstance(self.parts[0], bytes) else texts)


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    way: bytes
    tree: bytes
    holes: tuple[Hole, ...]


_decoder = msgspec.msgpack.Decoder(_Stored)
_encode = msgspec.msgpack.Encoder().encode


class Skeleton:
    """A value whose windows are not filled. Not changed once it is made, and shared by all whom it is served to.

    `way` and `tree` are the codec's (`Codec.skeleton`); `tree` is empty where the value is a text itself.
    """

    __slots__ = ("codec", "holes", "tree", "way")

    def __init__(self, codec: "Codec", way: bytes, tree: bytes, holes: tuple[Hole, ...]) -> None:
        self.codec = codec
        self.way = way
        self.tree = tree
        self.holes = holes

    def __repr__(self) -> str:
        return f"<Skeleton of {self.codec!r}, {sum(1 for _ in self.places)} windows>"

    @property
    def places(self) -> Iterator[Place]:
        for hole in self.holes:
            yield from hole.places

    @property
    def size(self) -> int:
        """What it takes of memory, in bytes, about."""
        parts = sum(sys.getsizeof(part) for hole in self.holes for part in hole.parts)
        return sys.getsizeof(self.tree) + parts + sum(200 + len(place.params) for place in self.places)

    def encode(self) -> bytes:
        return MARK + _encode(_Stored(self.way, self.tree, self.holes))

    def filled(self, results: Results) -> Any:
        """The value, with what its windows returned. Raises `WindowError` where that does not fit."""
        try:
            return self._with(lambda hole: hole.filled(results))
        except CorruptEntryError as error:
            names = ", ".join(dict.fromkeys(place.window for place in self.places))
            raise WindowError(
                f"with what {names} returned, the value is not what it is annotated as: {error}"
            ) from error

    def placed(self, places: Places) -> Any:
        """The value with placeholders, for the computation that uses it.

        Without an annotation a value may be anything, so that a template may ask it for its HTML; with one it is text.
        """
        free = self.codec.is_free
        return self._with(lambda hole: places.place(hole.places[0]) if free and hole.is_whole else hole.placed(places))

    def check(self) -> None:
        """Raise `CorruptEntryError` unless there is such a value, with texts that are empty where the holes are."""
        for hole in self.holes:
            check_parts(hole.parts, hole.places)
        if self.holes[0].path:
            try:
                tree = self.codec.tree(self.tree)
                for hole in self.holes:
                    parent = _parent_in(tree, hole.path)
                    if parent[hole.path[-1]] != hole.parts[0][:0]:
                        raise CorruptEntryError(f"a window where none was placed, at {hole.path!r}")
                    parent[hole.path[-1]] = None  # once only
            except (LookupError, TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
                raise CorruptEntryError(
                    f"a value with windows, and nowhere to put them: {first_line(error)}"
                ) from error
        elif self.tree or len(self.holes) > 1:
            raise CorruptEntryError("a text with windows, and more than that")
        self._with(lambda hole: hole.with_texts([_LIKE_A_PLACEHOLDER] * len(hole.places)))

    def _with(self, fill: Callable[[Hole], Any]) -> Any:
        if not self.holes[0].path:
            return self.codec.of_text(self.way, fill(self.holes[0]))
        tree = self.codec.tree(self.tree)
        for hole in self.holes:
            _parent_in(tree, hole.path)[hole.path[-1]] = fill(hole)
        return self.codec.of_tree(self.way, tree)


def _parent_in(tree: Any, path: Sequence[str | int]) -> Any:
    for step in path[:-1]:
        tree = tree[step]
    return tree


def woven(parts: Sequence[Any], texts: Sequence[Any]) -> Any:
    """The parts of a text, with texts between them."""
    both = [parts[0]]
    for text, part in zip(texts, parts[1:], strict=True):
        both += (text, part)
    return parts[0][:0].join(both)


def cut_out(tree: Any, places: Places, name: str) -> tuple[Any, tuple[Hole, ...]]:
    """A value as plain data, emptied where windows stand in it (in place), and those texts.

    Raises `WindowError` where a window stands in a key, or its placeholder was cut.
    """
    holes: list[Hole] = []

    def visit(value: Any, trail: Trail, path: tuple[Any, ...]) -> Any:
        if isinstance(value, str | bytes):
            segments = places.split(value, lambda: name + render(trail))
            if segments is None:
                return value
            if not all(type(step) in (str, int) for step in path):
                raise WindowError(
                    f"{name}{render(trail)}: a window stands below a key that is neither str nor int: make a list of "
                    f"pairs of it"
                )
            holes.append(Hole(path, *segments))
            return value[:0]
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str | bytes) and places.stands_in(key):
                    raise WindowError(f"{name}{render(trail)}: a window stands in a key: place it in a value")
                value[key] = visit(item, (trail, "", key), (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                value[index] = visit(item, (trail, "", index), (*path, index))
        return value

    return visit(tree, None, ()), tuple(holes)


def read_skeleton(data: bytes, codec: "Codec") -> Skeleton:
    """The skeleton in `data`, which begins with the mark. Whether its windows exist is for the caller to find out."""
    try:
        stored = _decoder.decode(data[len(MARK) :])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CorruptEntryError(f"a value with windows that is none: {first_line(error)}") from error
    if not stored.holes or not all(hole.path for hole in stored.holes[1:]):
        raise CorruptEntryError("a value with windows, and nowhere to put them")
    skeleton = Skeleton(codec, stored.way, stored.tree, stored.holes)
    skeleton.check()
    return skeleton


def check_parts(parts: Sequence[object], places: Sequence[Place]) -> None:
    """Raise `CorruptEntryError` for a text in parts, and windows between them, that were never stored."""
    if not places or len(parts) != len(places) + 1 or set(map(type, parts)) not in ({str}, {bytes}):
        raise CorruptEntryError(f"{len(places)} windows between {len(parts)} parts of a text")
    for place in places:
        if not STEPS.keys() >= set(place.how) or len(place.how) > MAX_STEPS:
            raise CorruptEntryError(f"a window placed in ways that there are not: {place.how!r}")
