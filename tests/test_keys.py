"""Keys: one for every spelling of a call, another for every other value and type, the same in every process."""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import inspect
import ipaddress
import itertools
import math
import os
import pathlib
import subprocess
import sys
import threading
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import ConfigurationError, InvalidKeyError, UnstableArgumentError
from asynctag.keys import MAX_KEY_BYTES, build_binder, build_key_maker, check_key, function_name, stable_text

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


class TestStableText:
    def test_different_values_and_types_have_different_texts(self) -> None:
        """1, True, 1.0 and "1" among them; no clever content passes for structure."""
        texts = [stable_text(value) for value in distinct()]
        assert [text for text, times in collections.Counter(texts).items() if times > 1] == []
        nested = [stable_text([value]) for value in distinct()]
        assert len(set(nested)) == len(texts)

    def test_a_value_made_again_has_the_same_text(self) -> None:
        """Where it lies in memory plays no part."""
        assert [stable_text(value) for value in distinct()] == [stable_text(value) for value in distinct()]

    def test_texts_are_ascii(self) -> None:
        """What is printable is a matter of the version of Python."""
        assert all(stable_text(value).isascii() for value in distinct())

    @given(values, values)
    def test_texts_are_equal_exactly_if_values_and_types_are(self, one: object, other: object) -> None:
        """The text of nested values is injective."""
        assert (stable_text(one) == stable_text(other)) == same(one, other)

    small = st.recursive(
        st.sampled_from([0, 1, True, 1.0, "1", "", "1,", "'", "[1]"]),
        lambda inner: st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple) | st.builds(Point, inner),
        max_leaves=3,
    )

    @given(small, small)
    def test_values_that_are_nearly_alike_are_told_apart(self, one: object, other: object) -> None:
        """From a few values, so that equal ones occur."""
        assert (stable_text(one) == stable_text(other)) == same(one, other)

    @given(st.lists(values, max_size=3), st.integers(0, 3), st.integers(0, 3))
    def test_nesting_is_seen(self, items: list[object], i: int, j: int) -> None:
        """Where a list begins within a list makes a difference."""
        one, other = [*items[:i], items[i:]], [*items[:j], items[j:]]
        assert (stable_text(one) == stable_text(other)) == same(one, other)

    def test_the_order_of_dicts_and_sets_does_not_matter(self) -> None:
        """They are equal in any order."""
        assert stable_text({"a": 1, "b": [2]}) == stable_text({"b": [2], "a": 1})
        for letters in itertools.permutations("abc"):
            assert stable_text(dict.fromkeys(letters)) == stable_text(dict.fromkeys("abc"))
        assert stable_text({1, 9, 17}) == stable_text({17, 9, 1})

    def test_equal_instants_in_two_zones_are_one(self) -> None:
        """An aware datetime stands for an instant."""
        amsterdam = NOON.astimezone(zoneinfo.ZoneInfo("Europe/Amsterdam"))
        assert stable_text(amsterdam) == stable_text(NOON) == "datetime(2026-01-02T12:00:00Z)"
        assert stable_text(NOON.replace(tzinfo=None)) != stable_text(NOON)

    def test_instants_that_utc_cannot_write_have_a_text(self) -> None:
        """The ends of the calendar are no crash."""
        two, one = (datetime.timezone(datetime.timedelta(hours=hours)) for hours in (2, 1))
        early = datetime.datetime(1, 1, 1, 1, tzinfo=two)
        assert stable_text(early) == stable_text(datetime.datetime(1, 1, 1, 0, tzinfo=one))
        assert stable_text(early) != stable_text(early.replace(microsecond=1))

    def test_texts_are_readable(self) -> None:
        """They are read in logs and in the backend."""
        assert stable_text([1, "a", (True,), {"b": None}]) == "[1,'a',(True,),{'b':None}]"
        assert stable_text(Place(1, 2)).endswith("test_keys.Place((1,2,))")
        assert stable_text(Line(1)).endswith("test_keys.Line(x=1,y=None)")
        assert stable_text(Colour.RED).endswith("test_keys.Colour['RED']")
        assert stable_text(Keyed(1)).endswith("test_keys.Keyed(1)")

    def test_settings_of_the_thread_change_nothing(self) -> None:
        """The context of decimals has a say in their `str`."""
        value = decimal.Decimal("1E+30")
        before = stable_text(value)
        with decimal.localcontext() as context:
            context.capitals = 0
            assert stable_text(value) == before

    def test_what_is_cached_on_a_value_is_no_part_of_it(self) -> None:
        """A cached property may be filled or not."""
        model = Model(x=3)
        before = stable_text(model)
        assert model.twice == 6
        assert stable_text(model) == before

    @pytest.mark.parametrize(
        "value",
        [
            *(
                object(),
                threading.Lock(),
                (x for x in "ab"),
                lambda: 1,
                stable_text,
                len,
                Mapped(),
                memoryview(b"a"),
                sys,
            ),
            *([object()], {"a": object()}, Point(object()), Keyed(object()), iter([1]), contextlib.nullcontext()),
            with_state(Text("a"), lock=threading.Lock()),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_value_is_refused(self, value: object) -> None:
        """Nothing in it is the same in every process."""
        with pytest.raises(UnstableArgumentError):
            stable_text(value)

    def test_classes_that_share_a_name_are_refused(self) -> None:
        """A class made in a function is one of many of its name."""

        @dataclasses.dataclass
        class Local:
            x: int

        for value in (Local, Local(1)):
            with pytest.raises(UnstableArgumentError, match="made in a function"):
                stable_text(value)
        with pytest.raises(UnstableArgumentError, match="a name that others may have"):
            stable_text(dataclasses.make_dataclass("A", ["x"], namespace={"__qualname__": "A(1"})(1))

    def test_a_value_that_holds_itself_is_refused(self) -> None:
        """It has no end; neither is the stack run through."""
        ring: list[object] = []
        ring.append([ring, ring])
        endless = Keyed(None)
        endless.number = endless
        for value in (ring, endless):
            with pytest.raises(UnstableArgumentError, match="holds itself"):
                stable_text(value)

    def test_texts_are_the_same_in_every_process(self) -> None:
        """Whatever the seed of `hash` is."""
        program = """
import decimal, enum, pathlib, uuid
from asynctag.keys import build_key_maker, stable_text

words = [f"w{i}" for i in range(40)]
unordered = {decimal.Decimal(1), pathlib.PurePath("a"), enum.Enum, None, 1j, "a", b"a"}
print(stable_text([set(words), frozenset(words), dict.fromkeys(set(words), {1.5}), uuid.UUID(int=5), unordered]))
print(build_key_maker(lambda a: a, name="f")(set(words)))
"""
        root = str(pathlib.Path(__file__).parent.parent)
        texts = {
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
                capture_output=True,
                check=True,
            ).stdout
            for seed in ("0", "1", "77")
        }
        assert len(texts) == 1


def key_of(fn: Callable[..., object], **options: typing.Any) -> Callable[..., str]:
    return build_key_maker(fn, name="shop.product", **options)


def product(product_id: object, region: object = "eu", *, lang: object = None) -> None: ...


class TestKeyMaker:
    def test_every_spelling_of_a_call_is_one_key(self) -> None:
        """Positional, keyword and default."""
        key = key_of(product)
        spellings = [
            key(635),
            key(product_id=635),
            key(635, "eu"),
            key(635, region="eu"),
            key(lang=None, region="eu", product_id=635),
        ]
        assert set(spellings) == {"shop.product(635,'eu',None)"}

    def test_types_are_distinct(self) -> None:
        """What Python takes for equal is not one argument."""
        key = key_of(lambda x: x)
        assert len({key(1), key(True), key(1.0), key("1"), key(b"1"), key(decimal.Decimal(1)), key(Level.ONE)}) == 7

    def test_every_kind_of_parameter_has_its_place(self) -> None:
        """Variable ones are a tuple and a sorted dict."""

        def f(a: object, /, b: object = 2, *rest: object, c: object, d: object = 4, **more: object) -> None: ...

        key = key_of(f)
        assert key(1, c=3) == "shop.product(1,2,(),3,4,{})"
        assert key(1, 2, 3, c=3, z=1, a=2) == key(1, 2, 3, a=2, z=1, c=3) == "shop.product(1,2,(3,),3,4,{'a':2,'z':1})"

        def g(a: object, /, *, b: object = 5) -> None: ...

        assert key_of(g)(1) == "shop.product(1,5)"

        def h(a: object = 7, /) -> None: ...

        assert key_of(h)() == "shop.product(7)"
        assert key_of(lambda: None)() == "shop.product()"

    def test_parameters_may_be_called_anything(self) -> None:
        """The generated function hides nothing behind their names."""

        def f(type: object, len: object, _text: object, _type: object, made: object = 1, é: object = 2) -> None: ...

        assert key_of(f)(1, 2, 3, 4) == "shop.product(1,2,3,4,1,2)"
        assert key_of(f)(UTC, 2, 3, 4).endswith(",2,3,4,1,2)")

    def test_names_may_hold_anything(self) -> None:
        """They are text, never source."""
        for name in ("{x}", 'it\'s "x"', "\\", "é'''"):
            assert build_key_maker(lambda a: a, name=name)(1) == f"{name}(1)"
            assert build_key_maker(lambda: 0, name=name)() == f"{name}()"

    def test_wrong_arguments_raise_as_the_function_does(self) -> None:
        """The error is Python's and names the user's function."""
        wrong: list[tuple[tuple[object, ...], dict[str, object]]] = [((), {}), ((1,), {"x": 2}), ((1, 2, 3), {})]
        for args, kwargs in wrong:
            with pytest.raises(TypeError) as expected:
                typing.cast(Callable[..., None], product)(*args, **kwargs)
            for made in (key_of(product), build_binder(product)):
                with pytest.raises(TypeError) as caught:
                    made(*args, **kwargs)
                assert str(caught.value) == str(expected.value)

    def test_long_keys_are_hashed(self) -> None:
        """Arguments of more than 200 characters are a digest of fixed length."""
        key = key_of(lambda x: x)
        assert key("x" * 198) == f"shop.product('{'x' * 198}')"
        long = ["x" * 199, "x" * 200, ["x" * 197], "\ud800" * 99, 10**4000, 10**5000, -(10**5000)]
        hashed = [key(value) for value in long]
        assert len(set(hashed)) == len(long)
        assert all(one.startswith("shop.product(#") and len(one) == len("shop.product(#)") + 32 for one in hashed)

    def test_a_version_is_part_of_the_key(self) -> None:
        """Another meaning is another key."""
        assert key_of(product, version=2)(1) == "shop.product@2(1,'eu',None)"
        assert key_of(lambda: 0, version="b.1")() == "shop.product@b.1()"

    @pytest.mark.parametrize("bad", ["", "a b", "(", "x" * 51, True, 1.5, Size.BIG])
    def test_a_bad_version_is_refused(self, bad: object) -> None:
        """It must not look like another key."""
        with pytest.raises(ConfigurationError, match="version="):
            key_of(product, version=bad)

    def test_unstable_arguments_are_named(self) -> None:
        """The error says which function, which parameter, which type, and what to do."""
        key = build_key_maker(lambda a, session: a, name="shop.f")
        for value in (threading.Lock(), [threading.Lock()]):
            with pytest.raises(UnstableArgumentError) as caught:
                key(1, value)
            for part in ("'session' of shop.f", "_thread.lock", 'exclude={"session"}', "key=", "__cache_key__"):
                assert part in str(caught.value)

    def test_excluded_parameters_are_left_out(self) -> None:
        """They are given to the call all the same."""
        assert key_of(lambda self, a: a, exclude={"self"})(object(), 1) == "shop.product(1)"
        assert key_of(lambda *rest, **more: 0, exclude=["rest", "more"])(object(), x=1) == "shop.product()"
        with pytest.raises(ConfigurationError, match=r"'regio'.*mean 'region'"):
            key_of(product, exclude={"regio"})
        with pytest.raises(ConfigurationError, match="give a set"):
            key_of(product, exclude="region")

    def test_a_method_needs_a_key_of_its_object(self) -> None:
        """`__cache_key__` gives it."""

        def method(self: object, a: object) -> None: ...

        assert key_of(method)(Keyed(5), 1).endswith("test_keys.Keyed(5),1)")
        with pytest.raises(UnstableArgumentError, match=r'exclude=\{"self"\}'):
            key_of(method)(object(), 1)

    def test_key_stands_for_all_arguments(self) -> None:
        """It takes some parameters by name, and gives any stable value."""
        assert key_of(product, key=lambda region, own=1: (region, own))(object()) == "shop.product(('eu',1,))"
        assert key_of(product, key=lambda **every: sorted(every))(1) == "shop.product(['lang','product_id','region'])"
        assert key_of(product, key=lambda product_id: "x" * 300)(1).startswith("shop.product(#")
        with pytest.raises(UnstableArgumentError, match=r"key= of shop\.product returned object"):
            key_of(product, key=lambda product_id: product_id)(object())

    def test_key_must_be_a_plain_function_of_the_parameters(self) -> None:
        """It is seen at decoration."""

        async def late(product_id: int) -> int:
            return product_id

        def positional(product_id: int, /) -> int:
            return product_id

        bad: list[tuple[Callable[..., object], str]] = [
            (late, "async"),
            (functools.partial(late), "async"),
            (positional, "by position"),
            (dict, "no signature"),
            (lambda produkt_id: 1, "mean 'product_id'"),
        ]
        for function, said in bad:
            with pytest.raises(ConfigurationError, match=said):
                key_of(product, key=function)

    def test_defaults_are_the_very_objects(self) -> None:
        """They are never written as source."""
        marker = Keyed([1])

        def f(a: object = marker, *, b: object = marker) -> None: ...

        assert build_binder(f)() == {"a": marker, "b": marker}
        assert key_of(f)() == key_of(f)(Keyed([1]), b=Keyed([1]))

    calls = st.tuples(values) | st.tuples(values, values)

    @given(calls, calls)
    def test_calls_have_one_key_exactly_if_their_arguments_are_the_same(
        self, one: tuple[object, ...], other: tuple[object, ...]
    ) -> None:
        """The fast path and the slow one agree, defaults included."""
        key = key_of(lambda a, b=None: a)
        full = [args if len(args) == 2 else (*args, None) for args in (one, other)]
        assert (key(*one) == key(*other)) == same(full[0], full[1])

    def test_values_have_the_text_of_values(self) -> None:
        """On the fast path and on the slow one."""
        key = key_of(lambda a, b: a)
        for value in distinct():
            for beside in (1, [1]):
                made, text = key(value, beside), f"{stable_text(value)},{stable_text(beside)}"
                assert made == f"shop.product({text})" or len(text) > 200


class TestBinder:
    def test_arguments_are_given_by_name(self) -> None:
        """With defaults, and variable ones under their own names."""

        def f(a: object, /, b: object = 2, *rest: object, c: object = 3, **more: object) -> None: ...

        assert build_binder(f)(1, 5, 6, z=1) == {"a": 1, "b": 5, "rest": (6,), "c": 3, "more": {"z": 1}}
        assert build_binder(lambda: None)() == {}

    def test_it_agrees_with_the_signature(self) -> None:
        """As `inspect` binds, so does it."""
        for args in ((1,), (1, 2)):
            bound = inspect.signature(product).bind(*args)
            bound.apply_defaults()
            assert build_binder(product)(*args) == bound.arguments


def closure() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


class TestFunctionName:
    def test_it_is_module_and_qualified_name(self) -> None:
        """Those name one function of a module."""
        assert function_name(product, None) == f"{__name__}.product"
        method = TestBinder.test_it_agrees_with_the_signature
        assert function_name(method, None) == f"{__name__}.TestBinder.test_it_agrees_with_the_signature"
        assert function_name(product, "mine") == "mine" == function_name(functools.partial(product), "mine")

    def test_two_closures_are_refused(self) -> None:
        """They would be served each other's values."""
        one, other = closure(), closure()
        assert one.__qualname__ == other.__qualname__
        for fn in (one, other, lambda: 1):
            with pytest.raises(ConfigurationError, match=r'two closures .* share a qualified name.*name="\.\.\."'):
                function_name(fn, None)

    def test_a_program_is_no_module(self) -> None:
        """`__main__` is another one each time."""
        main = types.FunctionType(product.__code__, {"__name__": "__main__"}, "product")
        with pytest.raises(ConfigurationError, match='name="'):
            function_name(main, None)

    def test_what_has_no_name_needs_one(self) -> None:
        """A partial, say."""
        with pytest.raises(ConfigurationError, match='name="'):
            function_name(functools.partial(product), None)

    @pytest.mark.parametrize("bad", ["", "a|b", "a\n", "a\x85", "x" * 201, "f(1)", "f@2", "\ud800", 5, b"x"], ids=ascii)
    def test_a_bad_name_is_refused(self, bad: typing.Any) -> None:
        """A name must not look like another key."""
        with pytest.raises(ConfigurationError, match="name="):
            function_name(product, bad)


class TestCheckKey:
    @pytest.mark.parametrize("good", ["k", "é" * 512, "x" * MAX_KEY_BYTES, "a b|c", Text("a")])
    def test_a_key_comes_back_as_it_is(self, good: str) -> None:
        """Any text of up to 1 KiB is a key; what comes back is exactly a str."""
        assert check_key(good) == good
        assert type(check_key(good)) is str

    @pytest.mark.parametrize(
        "bad", ["", 5, None, b"k", "x" * (MAX_KEY_BYTES + 1), "é" * 513, "\ud800", Size.BIG, ["k"]], ids=ascii
    )
    def test_what_is_no_key_is_refused(self, bad: object) -> None:
        """The error is clear and short."""
        with pytest.raises(InvalidKeyError, match="is not a key") as caught:
            check_key(bad)
        assert len(str(caught.value)) < 250
