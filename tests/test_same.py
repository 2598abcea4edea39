"""A value that came back is the same in every type and value, or the first place that differs is named."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import math
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from asynctag.codec import Codec, codec_for
from asynctag.errors import ValueNotCacheableError
from asynctag.same import Trail, difference, render

UTC = datetime.UTC
CEST = datetime.timezone(datetime.timedelta(hours=2))


class Kind(enum.Enum):
    BOOK = "book"
    FILM = "film"


class Text(str):
    """A str of its own class."""


class Items(list[int]):
    """A list that may have attributes."""


class Pair(NamedTuple):
    left: int
    right: object


@dataclasses.dataclass
class Tree:
    value: int
    children: "list[Tree]" = dataclasses.field(default_factory=list)

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.value


@dataclasses.dataclass(slots=True)
class Slotted:
    x: object


class Record(msgspec.Struct):
    x: object


class OpenModel(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: object = 0


class SecretModel(BaseModel):
    x: int = 0
    _seen: int = PrivateAttr(default=0)


class Opaque:
    """Equal where its number is, whatever else it holds."""

    def __init__(self, number: object, **state: object) -> None:
        self.number = number
        self.__dict__.update(state)

    def __eq__(self, other: object) -> bool:
        if self.number is None:
            raise RuntimeError("boom")
        return isinstance(other, Opaque) and self.number == other.number

    __hash__ = None  # type: ignore[assignment]


def with_state(value: Any, **state: object) -> Any:
    for name, one in state.items():
        setattr(value, name, one)
    return value


def distinct() -> list[Any]:
    """Fresh values, each the same as itself made again and as no other."""
    noon = datetime.datetime(2026, 1, 2, 12, tzinfo=UTC)
    return [
        *(None, True, 1, 1.0, "1", b"1", bytearray(b"1"), 0, 0.0, -0.0, math.nan, math.inf, Text("1")),
        *(decimal.Decimal("1.5"), decimal.Decimal("1.50"), Kind.BOOK, Kind.FILM),
        *([], (), set(), frozenset(), {}, [1], [True], (1,), {1}, {True}, {1.0}, frozenset({1}), [1, 2], [[1]]),
        *({math.nan}, {math.nan, 1.0}, Items([1]), with_state(Items([1]), unit="kg"), Pair(1, 2), Pair(1, 2.0)),
        *({"a": 1}, {"a": True}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {1: 1}, {True: 1}, collections.OrderedDict(a=1)),
        *(noon, noon.replace(tzinfo=None), noon.replace(tzinfo=None, fold=1), noon.astimezone(CEST), noon.date()),
        *(datetime.time(12), datetime.time(12, fold=1), datetime.time(12, tzinfo=UTC), datetime.timedelta(1)),
        *(Tree(1), Tree(2), Tree(1, [Tree(2)]), with_state(Tree(1), other=1), Slotted(1), Slotted(1.0)),
        *(Record(1), Record(1.0), Opaque(1), Opaque(1, more=2), Opaque(2)),
        *(OpenModel(), OpenModel(x=0), OpenModel(x=0.0), OpenModel.model_validate({"x": 0, "y": 1})),
        *(SecretModel(), with_state(SecretModel(), _seen=1)),
    ]


def test_a_value_is_the_same_as_itself_made_again() -> None:
    """NaN too, and a zone that is another object."""
    assert [
        difference(one, again) for one, again in zip(distinct(), distinct(), strict=True) if difference(one, again)
    ] == []


def test_no_two_values_that_differ_are_the_same() -> None:
    """What Python takes for equal among them; alone, and within a list, a dict and an object."""
    values, again = distinct(), distinct()
    for i, one in enumerate(values):
        for j, other in enumerate(again):
            if i != j:
                assert difference(one, other) is not None, (one, other)
                assert difference([one], [other]) is not None, (one, other)
                assert difference({"a": one}, {"a": other}) is not None, (one, other)
                assert difference(Record(one), Record(other)) is not None, (one, other)


def test_a_cached_property_makes_no_difference() -> None:
    """It is no state: it is computed anew."""
    filled = Tree(1)
    assert filled.double == 2
    assert difference(filled, Tree(1)) is None


ZONE = "a zone does not come back: convert to UTC"
UNCHANGED = "must not change a value"

PLACES: list[tuple[Any, Any, str, str, str]] = [
    (1, 2, "", "1 came back as 2", UNCHANGED),
    (Text("a"), "a", "", "Text came back as str", "Text is a subclass: annotate it"),
    ("a", 1, "", "str came back as int", "return what the annotation says"),
    (True, 1, "", "bool came back as int", "return what the annotation says"),
    ([1, [2, 3]], [1, [2, 4]], "[1][1]", "3 came back as 4", UNCHANGED),
    ([1], [1, 2], "", "1 items came back as 2", UNCHANGED),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, "['a']['b']", "1 came back as 2", UNCHANGED),
    ({"a": 1}, {}, "", "1 keys came back as 0", UNCHANGED),
    ({1: 2}, {"1": 2}, " key [1]", "int came back as str", "return what the annotation says"),
    ({1, 2}, {1, 3}, "", "the item 2 did not come back", UNCHANGED),
    ({1}, {1, 2}, "", "{1} came back as {1, 2}", UNCHANGED),
    ({1}, {1.0}, " item [1]", "int came back as float", "return what the annotation says"),
    (Tree(1, [Tree(2)]), Tree(1, [Tree(3)]), ".children[0].value", "2 came back as 3", UNCHANGED),
    (with_state(Tree(1), other=1), Tree(1), ".other", "is not there once decoded", "only declared fields"),
    (Tree(1), with_state(Tree(1), other=1), ".other", "is there only once decoded", "only declared fields"),
    (OpenModel(x=0), OpenModel(), " (the fields that were set)", "the item 'x' did not come back", UNCHANGED),
    (OpenModel.model_validate({"y": 1}), OpenModel.model_validate({"y": 2}), " (extra fields)['y']", "1", UNCHANGED),
    (with_state(SecretModel(), _seen=1), SecretModel(), " (private attributes)['_seen']", "1 came", UNCHANGED),
    (datetime.time(1, tzinfo=UTC), datetime.time(1, tzinfo=CEST), "", "came back as", ZONE),
    (Opaque(None), Opaque(None), "", "Opaque cannot be compared (boom)", UNCHANGED),
    (["x" * 99], ["y"], "[0]", "xxx...xxx", UNCHANGED),
]  # fmt: skip


@pytest.mark.parametrize(("was", "came", "path", "said", "advice"), PLACES, ids=[row[3] for row in PLACES])
def test_the_first_place_that_differs_is_named_with_advice(
    was: Any, came: Any, path: str, said: str, advice: str
) -> None:
    """The path to it, what is wrong there, and what to do."""
    found = difference(was, came)
    assert found is not None
    assert found.path == path
    assert said in found.said
    assert advice in found.advice


def test_what_was_there_is_given() -> None:
    """Advice may depend on it."""
    found = difference({"a": [1, 2**70]}, {"a": [1, 0]})
    assert found is not None
    assert found.was == 2**70


def test_classes_of_one_name_are_told_apart_by_their_modules() -> None:
    """`Text came back as Text` would say nothing."""
    other = type("Text", (str,), {"__module__": "elsewhere"})
    found = difference(Text("a"), other("a"))
    assert found is not None
    assert found.said == f"{__name__}.Text came back as elsewhere.Text"


def test_a_path_is_written_from_the_outside_in() -> None:
    """Names with a dot, indexes and keys in brackets."""
    trail: Trail = (((None, ".", "variants"), "", 1), " key ", "colour")
    assert render(trail) == ".variants[1] key ['colour']"
    assert render(None) == ""


# Through a codec: what serializers of users change


def codec(annotation: object) -> Codec:
    return codec_for(annotation, owner="shop.product")


class Lossy(BaseModel):
    number: decimal.Decimal = decimal.Decimal(1)
    zero: float = 1.0
    table: dict[str, int] = {}

    @pydantic.field_serializer("number")
    def plain(self, value: decimal.Decimal) -> str:
        return str(value.normalize())

    @pydantic.field_serializer("zero")
    def unsigned(self, value: float) -> float:
        return abs(value)

    @pydantic.field_serializer("table")
    def ordered(self, value: dict[str, int]) -> dict[str, int]:
        return {key: value[key] for key in sorted(value) if value[key]}


@pytest.mark.parametrize(
    ("lossy", "said"),
    [
        (Lossy(number=decimal.Decimal("1.50")), r"Lossy\.number: Decimal\('1\.50'\) came back as Decimal\('1\.5'\)"),
        (Lossy(zero=-0.0), r"Lossy\.zero: -0\.0 came back as 0\.0"),
        (Lossy(table={"a": 1, "b": 0}), r"Lossy\.table: 2 keys came back as 1"),
        (Lossy(table={"b": 1, "a": 1}), r"Lossy\.table key \['b'\]: 'b' came back as 'a'"),
    ],
    ids=repr,
)
def test_equal_is_not_enough(lossy: Lossy, said: str) -> None:
    with pytest.raises(ValueNotCacheableError, match=said):
        codec(Lossy).encode(lossy)


def test_a_private_attribute_that_decoding_does_not_give_is_refused() -> None:
    model = SecretModel(x=1)
    model._seen = 5
    with pytest.raises(ValueNotCacheableError, match=r"private attributes.*5 came back as 0"):
        codec(SecretModel).encode(model)


def test_an_attribute_beside_the_fields_is_refused_and_a_cached_property_is_not() -> None:
    tree = Tree(1)
    assert tree.double == 2
    codec(Tree).encode(tree)
    tree.other = 1  # type: ignore[attr-defined]
    with pytest.raises(ValueNotCacheableError, match=r"Tree\.other: is not there once decoded"):
        codec(Tree).encode(tree)


@pytest.mark.parametrize(
    "zone", [datetime.timezone(datetime.timedelta(hours=2)), "Europe/Berlin"], ids=["offset", "zone"]
)
def test_a_datetime_whose_zone_is_lost_is_refused_with_advice(zone: Any) -> None:
    zoneinfo = pytest.importorskip("zoneinfo")
    if isinstance(zone, str):
        try:
            zone = zoneinfo.ZoneInfo(zone)
        except zoneinfo.ZoneInfoNotFoundError:
            pytest.skip("no time zone data")
    value = datetime.datetime(2026, 7, 1, tzinfo=zone)
    with pytest.raises(ValueNotCacheableError, match="convert to UTC"):
        codec(datetime.datetime).encode(value)
    assert codec(datetime.datetime).encode(value.astimezone(UTC))


class Event(BaseModel):
    when: datetime.datetime


def test_zones_of_one_fixed_offset_are_the_same() -> None:
    for zone in (UTC, datetime.timezone(datetime.timedelta(hours=2))):
        event = Event(when=datetime.datetime(2026, 7, 1, tzinfo=zone))
        back = codec(Event).decode(codec(Event).encode(event))
        assert back == event
        assert back.when.utcoffset() == event.when.utcoffset()
