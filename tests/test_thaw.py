"""A thawed value equals the original and shares nothing with it that can be changed."""

import copy
import dataclasses
import datetime
import enum
import functools
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, PrivateAttr

from asynctag.thaw import MAX_CONTAINERS, plan
from tests.values import named


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    near: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: int
    near: Any = ()

    @functools.cached_property
    def double(self) -> int:
        return self.x * 2


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int
    near: list[Any]


@dataclasses.dataclass(slots=True, frozen=True)
class FixedSlotted:
    x: int
    near: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Record(msgspec.Struct):
    x: int
    near: Any


class FixedRecord(msgspec.Struct, frozen=True):
    x: int
    near: Any


class Model(BaseModel):
    x: int = 0
    near: list[Any] = []


class OpenModel(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 0


class SecretModel(BaseModel):
    x: int = 0
    _seen: list[int] = PrivateAttr(default_factory=list)


FIXED = [
    None,
    True,
    1,
    -0.0,
    "text",
    b"bytes",
    (1, ("a", frozenset({2}))),
    frozenset({1, "a"}),
    Colour.RED,
    uuid.UUID(int=1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    Fixed(1, (2, 3)),
    FixedSlotted(1, "a"),
    FixedRecord(1, (2,)),
    Pair(1, "a"),
]

CHANGEABLE: list[tuple[Any, Callable[[Any], object]]] = [
    ({"a": 1}, lambda v: v.update(b=2)),
    ([1], lambda v: v.append(2)),
    ({1}, lambda v: v.add(2)),
    (bytearray(b"a"), lambda v: v.extend(b"b")),
    ({"a": {"b": [1]}}, lambda v: v["a"]["b"].append(2)),
    ([[1], [2]], lambda v: v[1].append(3)),
    ([[1], {"a": 1}, 3], lambda v: v[1].clear()),
    (([1], 2), lambda v: v[0].append(2)),
    (Pair([1], 2), lambda v: v.left.append(2)),
    (Point(1, [1]), lambda v: setattr(v, "x", 2)),
    (Point(1, [[1]]), lambda v: v.near[0].append(2)),
    (Fixed(1, [1]), lambda v: v.near.append(2)),
    (Slotted(1, [1]), lambda v: v.near.append(2)),
    (FixedSlotted(1, [1]), lambda v: v.near.append(2)),
    (Record(1, 2), lambda v: setattr(v, "x", 2)),
    (Record(1, [1]), lambda v: v.near.append(2)),
    (FixedRecord(1, [1]), lambda v: v.near.append(2)),
    (Model(x=1), lambda v: setattr(v, "x", 2)),
    (Model(x=1), lambda v: v.model_fields_set.add("near")),
    (Model(near=[{"a": 1}]), lambda v: v.near[0].clear()),
    (OpenModel.model_validate({"more": [1]}), lambda v: v.more.append(2)),
    (OpenModel.model_validate({"more": 1}), lambda v: setattr(v, "other", 2)),
    (SecretModel(), lambda v: v._seen.append(2)),
    ([Model(x=1, near=[Model(x=2)]), Model()], lambda v: setattr(v[0].near[0], "x", 3)),
]


@pytest.mark.parametrize("value", FIXED, ids=named)
def test_what_cannot_change_is_given_out_as_it_is(value: Any) -> None:
    kept = plan(value)
    assert kept is not None
    assert kept.thaw is None
    assert kept.body is value
    assert kept.size > 0


@pytest.mark.parametrize(("value", "change"), CHANGEABLE, ids=named)
def test_a_change_of_one_is_not_seen_by_the_others(value: Any, change: Callable[[Any], object]) -> None:
    before = copy.deepcopy(value)
    kept = plan(value)
    assert kept is not None
    assert kept.thaw is not None
    first, second = kept.thaw(kept.body), kept.thaw(kept.body)
    assert type(first) is type(value)
    assert first == second == value
    change(first)
    assert _state(first) != _state(before), "the change must be one"
    assert _state(second) == _state(value) == _state(kept.thaw(kept.body)) == _state(before)
    change(value)
    assert _state(kept.thaw(kept.body)) == _state(before)


def _state(value: Any) -> object:
    if isinstance(value, BaseModel):
        return value, set(value.model_fields_set), value.__pydantic_private__
    return value


def test_a_model_keeps_its_set_fields_and_stays_a_working_model() -> None:
    kept = plan(Model(near=[1]))
    assert kept is not None
    assert kept.thaw is not None
    thawed = kept.thaw(kept.body)
    assert thawed.model_fields_set == {"near"}
    assert thawed.model_extra is None
    assert thawed.model_copy(update={"x": 3}) == Model(x=3, near=[1])
    assert thawed.model_dump(exclude_unset=True) == {"near": [1]}


def test_an_object_met_twice_is_left_to_decoding() -> None:
    shared: list[int] = []
    assert plan([shared, shared]) is None
    cycle: list[Any] = []
    cycle.append(cycle)
    assert plan(cycle) is None


class PostInit(msgspec.Struct):
    x: int

    def __post_init__(self) -> None:
        pass


@dataclasses.dataclass
class OfList(list[int]):
    x: int = 0


class Odd(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    x: Any = None


class WithNew(BaseModel):
    def __new__(cls, *args: object, **kwargs: object) -> "WithNew":
        return super().__new__(cls)


@dataclasses.dataclass(frozen=True)
class Parent:
    x: int


class Child(Parent):
    """Not frozen: a new attribute can be set."""


@pytest.mark.parametrize("value", [PostInit(1), OfList(), Odd(x=object()), WithNew(), object(), {}.keys()])
def test_what_copying_might_make_differently_is_left_to_decoding(value: Any) -> None:
    assert plan(value) is None


def test_a_plain_subclass_of_a_frozen_dataclass_is_copied() -> None:
    kept = plan(Child(1))
    assert kept is not None
    assert kept.thaw is not None
    assert kept.thaw(kept.body) is not kept.thaw(kept.body)


def test_many_containers_are_left_to_decoding() -> None:
    assert plan([[] for _ in range(MAX_CONTAINERS - 1)]) is not None
    assert plan([[] for _ in range(MAX_CONTAINERS)]) is None
    assert plan(["text"] * 10_000) is not None
    assert plan(tuple((n,) for n in range(1000))) is not None


def test_templates_share_nothing_with_the_value_that_was_planned() -> None:
    inner = [1]
    kept = plan({"a": inner, "b": Point(1, inner[:])})
    assert kept is not None
    assert kept.thaw is not None
    inner.append(2)
    assert kept.thaw(kept.body)["a"] == [1]


def test_size_grows_with_what_is_held() -> None:
    small, large = plan({"a": "b"}), plan({"a": "b" * 10_000})
    assert small is not None
    assert large is not None
    assert large.size - small.size == 9_999


hashable = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
values = st.recursive(
    hashable | st.frozensets(hashable),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(Point, st.integers(), st.lists(inner, max_size=3))
        | st.builds(Slotted, st.integers(), st.lists(inner, max_size=3))
        | st.builds(Record, st.integers(), inner)
        | st.builds(Fixed, st.integers(), inner)
        | st.builds(Model, x=st.integers(), near=st.lists(inner, max_size=3))
        | st.builds(Pair, inner, inner)
        | st.sets(hashable, max_size=3)
    ),
    max_leaves=20,
)


def _changeable(value: Any, into: dict[int, Any]) -> dict[int, Any]:
    """Every object in a value that can be changed, by identity."""
    if isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (Point, Fixed, Record, Model, Slotted)):
        parts = [value.near]
    else:
        parts = []
    if not isinstance(value, (tuple, Fixed)) and (parts or isinstance(value, (list, dict, set, Point, Record))):
        into[id(value)] = value
    for part in parts:
        _changeable(part, into)
    return into


@given(values)
def test_copies_are_equal_and_share_nothing(value: Any) -> None:
    kept = plan(value, limit=1000)
    if kept is None:  # Hypothesis gave the same object twice.
        return
    if kept.thaw is None:
        assert kept.body is value
        assert not _changeable(value, {})
        return
    first, second = kept.thaw(kept.body), kept.thaw(kept.body)
    assert first == second == value
    assert repr(first) == repr(value)
    groups = [_changeable(each, {}) for each in (value, first, second)]
    assert len(groups[0]) == len(groups[1]) == len(groups[2])
    assert not groups[0].keys() & groups[1].keys()
    assert not groups[1].keys() & groups[2].keys()
