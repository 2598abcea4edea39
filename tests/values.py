"""Values of every kind that may stand in a key, some nearly alike, and what it means that two are the same."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import math
import pathlib
import re
import types
import typing
import uuid
import zoneinfo

import attrs
import msgspec
import pydantic
from hypothesis import strategies as st


def named(value: object) -> str:
    """The name of a parameter of a test: the same in every process that runs tests."""
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


UTC = datetime.UTC
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=UTC)
T = typing.TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Other(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    ONE = 1


class Size(enum.StrEnum):
    BIG = "big"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    """A str that may have attributes."""


class Number(int):
    pass


class Slotted(list[int]):
    __slots__ = ("unit",)
    unit: str


class Clever(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "the same"

    __repr__ = __str__


class Place(typing.NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Point:
    x: object
    y: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    x: object
    y: object = None


@attrs.define
class Attrs:
    x: int


class Struct(msgspec.Struct):
    x: int | msgspec.UnsetType = msgspec.UNSET


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: int = 0

    @functools.cached_property
    def twice(self) -> int:
        return self.x * 2


class Root(pydantic.RootModel[list[int]]):
    pass


class Box(pydantic.BaseModel, typing.Generic[T]):
    x: T


class Keyed:
    def __init__(self, number: object) -> None:
        self.number = number

    def __cache_key__(self) -> object:
        return self.number


@dataclasses.dataclass
class Mapped:
    __mapper__ = object()
    x: int = 1


def with_state(value: typing.Any, **state: object) -> typing.Any:
    for name, one in state.items():
        setattr(value, name, one)
    return value


def distinct() -> list[object]:
    """Fresh values, no two of which are the same."""
    return [
        *(1, True, 1.0, "1", b"1", 1 + 0j, None, "None", 0, False, 0.0, -0.0, "", b"", 0j, complex(0, -0.0), ...),
        *(math.nan, math.inf, -math.inf, "nan", 10**5000, -(10**5000), 10**5000 + 1),
        *([], (), {}, set(), frozenset(), bytearray(), [1], (1,), {1}, frozenset({1}), {1: 1}, bytearray(b"1")),
        *([[]], [()], ["1"], [True], [1.0], [1, 2], [[1, 2]], [[1], 2], (1, 2), ((1, 2),), {1: 2}, {1, 2}, [(1, 2)]),
        *({"a": 1}, {b"a": 1}, "{'a':1}", [("a", 1)], {"a": {"b": 1}}, {"a": 1, "b": 2}),
        *(collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), collections.Counter(a=1)),
        *(collections.defaultdict(int, a=1), collections.defaultdict(list), types.MappingProxyType({"a": 1})),
        *(collections.deque([1]), collections.deque([1], 2)),
        *("a,b", ["a", "b"], ["a,b"], "['a','b']", ["a','b"], ['a","b'], "'", '"', "'\""),
        *("\u0434", "\\u0434", "\ud800", "\\ud800"),
        *(with_state(Text("1"), language="en"), with_state(Text("1"), language="de"), Text("1"), Number(1)),
        *(Clever("a"), Clever("b"), Slotted([1]), with_state(Slotted([1]), unit="kg")),
        *(Colour.RED, Colour.GREEN, Other.RED, Level.ONE, Size.BIG, "big", Colour, Other, int),
        *(Rights.READ, Rights.READ | Rights.WRITE, Rights(0)),
        *(Point(1, 2), Point(2, 1), Point("1,y=2"), Point, Line(1, 2), Place(1, 2), Attrs(1), Struct(1), Struct()),
        *(Model(x=1), Model(x=2), Model.model_validate({"x": 1, "z": 2}), Model.model_validate({"x": 1, "z": 3})),
        *(
            Root([1]),
            Box[int](x=1),
            Box[bool](x=True),
            Box[list[int]](x=[1]),
            Box[int],
            Keyed(1),
            Keyed("1"),
            Keyed([1]),
        ),
        *(NOON, NOON.replace(tzinfo=None), NOON.replace(tzinfo=None, fold=1), NOON.replace(microsecond=1)),
        *(
            NOON.isoformat(),
            NOON.date(),
            NOON.time(),
            NOON.timetz(),
            datetime.time(12, tzinfo=zoneinfo.ZoneInfo("UTC")),
        ),
        *(datetime.timedelta(1), datetime.timedelta(0, 1), datetime.timedelta(0, 0, 1)),
        *(UTC, datetime.timezone.min, zoneinfo.ZoneInfo("UTC")),
        *(uuid.UUID(int=1), str(uuid.UUID(int=1)), decimal.Decimal(1), decimal.Decimal("1.0")),
        *(decimal.Decimal("NaN"), decimal.Decimal("sNaN"), fractions.Fraction(1), fractions.Fraction(1, 2)),
        *(range(1), range(1, 2), slice(1), slice(1, 2), slice("1")),
        *(pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), pathlib.Path("a"), "a"),
        *(ipaddress.ip_address("1.2.3.4"), ipaddress.ip_network("1.2.3.4"), ipaddress.ip_interface("1.2.3.4")),
        ipaddress.ip_address("::1"),
    ]


some_members = st.sampled_from([*Colour, *Other, *Level, *Rights, int, Point])
scalars: st.SearchStrategy[typing.Any] = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 2), st.integers(), st.floats(), st.sampled_from([0.0, -0.0, 1.0, "1"])),
    *(st.text(max_size=4), st.text(st.sampled_from("'\",()[]{}:\\a1="), max_size=6), st.binary(max_size=3)),
    *(st.complex_numbers(), st.dates(), st.timedeltas(), st.uuids(), some_members),
    st.decimals(allow_nan=False),  # a signalling NaN has no hash
)
hashables: st.SearchStrategy[typing.Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values: st.SearchStrategy[typing.Any] = st.recursive(
    hashables,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(Line, inner)
        | inner.map(Keyed)
        | st.text(max_size=2).map(Text)
    ),
    max_leaves=6,
)


def same(one: typing.Any, other: typing.Any) -> bool:
    """Equal, and of the same types, all the way down; with all NaN alike, and 0.0 and -0.0 not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, complex):
        return same((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, decimal.Decimal):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return same_in_any_order(one, other)
    if isinstance(one, dict):
        return same_in_any_order(one.items(), other.items())
    if isinstance(one, Point | Line):
        return same((one.x, one.y), (other.x, other.y))
    if isinstance(one, Keyed):
        return same(one.number, other.number)
    equal: bool = one == other
    return equal


def same_in_any_order(one: typing.Iterable[object], other: typing.Iterable[object]) -> bool:
    left = list(other)
    for item in one:
        found = next((i for i, candidate in enumerate(left) if same(item, candidate)), None)
        if found is None:
            return False
        del left[found]
    return not left
