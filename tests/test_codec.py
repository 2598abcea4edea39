"""What comes back from a codec is what went in, or the store was refused and the place named."""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import functools
import ipaddress
import itertools
import math
import pathlib
import sys
import types
import typing
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Self, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from asynctag.codec import NOT_GIVEN, Codec, codec_for
from asynctag.errors import CorruptEntryError, UnsupportedTypeError, ValueNotCacheableError
from tests.values import named

T = TypeVar("T")
UTC = datetime.UTC


class Level(enum.IntEnum):
    LOW = 1


class Kind(enum.Enum):
    BOOK = "book"


class Markup(str):
    pass


@dataclasses.dataclass
class Animal:
    name: str


@dataclasses.dataclass
class Dog(Animal):
    pass


@dataclasses.dataclass
class Tree:
    value: int
    children: "list[Tree]" = dataclasses.field(default_factory=list)
    total: int = dataclasses.field(init=False, default=0)

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.value


class Row(TypedDict):
    id: int
    tags: set[str]


class Pair(NamedTuple):
    left: int
    right: list[int]


class Record(msgspec.Struct):
    x: int
    more: dict[int, float] = {}


class Box(msgspec.Struct, Generic[T]):
    item: T


class Variant(BaseModel):
    price: float
    colour: str = "red"


class Product(BaseModel):
    id: int
    variants: list[Variant] = []
    parent: "Product | None" = None
    note: str | None = None


class Puppy(Product):
    pass


class Cat(BaseModel):
    kind: Literal["cat"] = Field(alias="petKind")


class Bird(BaseModel):
    kind: Literal["bird"] = Field(alias="petKind")


Pet = Annotated[Cat | Bird, Field(discriminator="kind")]


class OpenModel(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 0


class SecretModel(BaseModel):
    x: int = 0
    _seen: int = PrivateAttr(default=0)


_numbers = itertools.count()


class Numbered(BaseModel):
    number: int = Field(default_factory=lambda: next(_numbers))
    name: str = ""


class Places(BaseModel):
    path: pathlib.PurePosixPath
    address: ipaddress.IPv4Address


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    x: int


class RawInput(BaseModel):
    x: int = Field(alias="theX")

    @pydantic.model_validator(mode="before")
    @classmethod
    def look(cls, data: Any) -> Any:
        assert "theX" in data
        return data


@pydantic.dataclasses.dataclass
class Checked:
    x: int


@dataclasses.dataclass
class Holder:
    model: Product
    kind: Kind = Kind.BOOK


class HolderRow(TypedDict):
    model: Product


UserId = NewType("UserId", int)


def codec(annotation: object = NOT_GIVEN) -> Codec:
    return codec_for(annotation, owner="shop.product")


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down, by another way than the codec's own."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or repr(left) == repr(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (set, frozenset)):
        return sorted(map(repr, left)) == sorted(map(repr, right))
    if isinstance(left, BaseModel):
        return left.model_fields_set == right.model_fields_set and same(left.__dict__, right.__dict__)
    if dataclasses.is_dataclass(left):
        return same(left.__dict__, right.__dict__)
    if isinstance(left, msgspec.Struct):
        return same(msgspec.structs.asdict(left), msgspec.structs.asdict(right))
    return bool(left == right)


KEPT: list[tuple[Any, Any]] = [
    (NOT_GIVEN, {"a": [1, 2.0, None, True, "x", b"y", {"b": -0.0}]}),
    (NOT_GIVEN, {1: 2, "z": 1, "a": 2}),
    (NOT_GIVEN, math.nan),
    (NOT_GIVEN, 2**64 - 1),
    (Any, [1]),
    (object, {"a": 1}),
    (None, None),
    (int, 7),
    (str, "é"),
    (float, 1.0),
    (int | str | None, 5),
    (Optional[str], None),  # noqa: UP045
    (list[object], [1, "a"]),
    (tuple[int, ...], (1, 2)),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (set[str], {"a", "b"}),
    (set[float], {math.nan, 1.0}),
    (frozenset[int], frozenset({1})),
    (bytearray, bytearray(b"a")),
    (Level, Level.LOW),
    (Kind, Kind.BOOK),
    (uuid.UUID, uuid.UUID(int=5)),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (datetime.datetime, datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
    (datetime.datetime, datetime.datetime(2026, 1, 2)),
    (datetime.date, datetime.date(2026, 1, 2)),
    (datetime.time, datetime.time(1, 2, 3)),
    (datetime.timedelta, datetime.timedelta(days=-1, microseconds=5)),
    (Tree, Tree(1, [Tree(2)])),
    (list[Row], [{"id": 1, "tags": {"a"}}]),
    (Pair, Pair(1, [2])),
    (Record, Record(1, {2: 3.0})),
    (Box[int], Box(1)),
    (Box, Box([1])),
    (UserId, 5),
    (Literal[1, "a"], "a"),
    (Annotated[int, msgspec.Meta(ge=1)], 3),
    (Sequence[int], [1]),
    (Product, Product(id=1, variants=[Variant(price=1.0)], parent=Product(id=2, note=None))),
    (list[Product], [Product(id=1)]),
    (dict[str, Product | None], {"a": Product(id=1), "b": None}),
    (Holder, Holder(Product(id=1))),
    (HolderRow, {"model": Product(id=1)}),
    (Product | Animal, Animal("a")),
    (Checked, Checked(1)),
    (tuple[Product, int], (Product(id=1), 1)),
    (Pet, Cat(petKind="cat")),
    (RawInput, RawInput(theX=1)),
    (OpenModel, OpenModel.model_validate({"x": 1, "y": [1]})),
    (SecretModel, SecretModel(x=1)),
    (Frozen, Frozen(x=1)),
    (Places, Places(path=pathlib.PurePosixPath("a/b"), address=ipaddress.IPv4Address("127.0.0.1"))),
    (pydantic.RootModel[list[int]], pydantic.RootModel[list[int]]([1])),
    (pydantic.HttpUrl, pydantic.HttpUrl("https://example.org/a")),
]


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=named)
def test_values_come_back_the_same(annotation: Any, value: Any) -> None:
    its = codec(annotation)
    assert same(its.decode(its.encode(value)), value)
    kept = its.keep(value)
    thawed = [kept.body, kept.body] if kept.thaw is None else [kept.thaw(kept.body), kept.thaw(kept.body)]
    assert same(thawed[0], value)
    assert same(thawed[1], value)
    if kept.thaw is not None:
        assert thawed[0] is not thawed[1]
        assert thawed[0] is not value
    assert kept.size > 0


REFUSED: list[tuple[Any, Any, str, str]] = [
    (NOT_GIVEN, (1, 2), "value", "tuple came back as list; without an annotation .* annotate the return type"),
    (NOT_GIVEN, {"a": {1}}, "value['a']", "set came back as list; .*annotate the return type"),
    (NOT_GIVEN, {"a": [Animal("x")]}, "value['a'][0]", "Animal came back as dict; .*annotate the return type"),
    (NOT_GIVEN, {"a": object()}, "value['a']", "object cannot be encoded"),
    (NOT_GIVEN, {"a": [2**64]}, "value['a'][0]", "int cannot be encoded .*64 bits"),
    (NOT_GIVEN, ["ok", "\ud800"], "value[1]", "str cannot be encoded .*surrogates"),
    (NOT_GIVEN, Markup("a"), "value", "Markup"),
    (NOT_GIVEN, msgspec.msgpack.Ext(1, b"a"), "value", "extension"),
    (str, Markup("a"), "value", "Markup"),
    (str, "\udc00", "value", "surrogates"),
    (str, 1, "value", "Expected `str`, got `int`"),
    (int, Level.LOW, "value", "Level came back as int; .*return what the annotation says"),
    (int, -(2**63) - 1, "value", "64 bits"),
    (float, 2, "value", "int came back as float"),
    (Animal, Dog("a"), "Animal", "Dog came back as Animal; Dog is a subclass: annotate it"),
    (Sequence[int], (1,), "value", "tuple came back as list"),
    (list[Row], [{"id": "1", "tags": set()}], "value[0].id", "Expected `int`, got `str`"),
    (Record, Record(1, {1: 2}), "Record.more[1]", "int came back as float"),
    (decimal.Decimal, 1.5, "Decimal", "float came back as Decimal"),
    (Variant, Variant.model_construct(price=1), "Variant.price", "int came back as float"),
    (Variant, Variant.model_construct(price="x"), "Variant.price", "valid number"),
    (Product, Puppy(id=1), "Product", "Puppy came back as Product; Puppy is a subclass"),
    (list[Product], [Product(id=1), Puppy(id=2)], "value[1]", "Puppy came back as Product"),
    (Product, None, "Product", "Product"),
    (datetime.datetime, datetime.datetime(2026, 1, 1, fold=1), "datetime", "fold=1"),
    (Variant, Variant(price=math.inf), "Variant.price", "ser_json_inf_nan"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "said"), REFUSED, ids=named)
def test_what_would_not_come_back_is_refused_and_the_place_named(
    annotation: Any, value: Any, path: str, said: str
) -> None:
    for refuse in (codec(annotation).encode, codec(annotation).keep):
        with pytest.raises(ValueNotCacheableError, match=said) as caught:
            refuse(value)
        assert caught.value.path == path
        assert str(caught.value).startswith(f"{path}: ")


def test_a_deep_place_is_named() -> None:
    product = Product(id=1, variants=[Variant(price=1.0), Variant.model_construct(price=2)])
    with pytest.raises(ValueNotCacheableError, match=r"^Product\.variants\[1\]\.price: int came back as float"):
        codec(Product).encode(product)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_too_deep_and_cyclic_values_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    loop: dict[str, Any] = {"a": object()}
    loop["self"] = loop
    product = Product(id=1)
    product.parent = product
    for annotation, value in [
        (NOT_GIVEN, cycle),
        (NOT_GIVEN, {"self": loop}),
        (NOT_GIVEN, _nested(5000)),
        (Product, product),
    ]:
        with pytest.raises(ValueNotCacheableError):
            codec(annotation).encode(value)
        with pytest.raises(ValueNotCacheableError):
            codec(annotation).keep(value)


def test_a_model_keeps_its_set_fields() -> None:
    for product in (Product(id=1), Product(id=1, note=None), Product(id=1, variants=[Variant(price=1, colour="red")])):
        back = codec(Product).decode(codec(Product).encode(product))
        assert back == product
        assert back.model_fields_set == product.model_fields_set
        kept = codec(Product).keep(product)
        assert kept.thaw is not None
        thawed = kept.thaw(kept.body)
        assert thawed.model_dump(exclude_unset=True) == product.model_dump(exclude_unset=True)


def test_a_default_that_is_new_each_time_comes_back_as_it_was() -> None:
    numbered = Numbered(name="a")
    data = codec(list[Numbered]).encode([numbered])
    for _ in range(2):
        (back,) = codec(list[Numbered]).decode(data)
        assert back == numbered
        assert back.model_fields_set == {"name"}


def test_a_default_that_was_changed_in_place_comes_back_changed() -> None:
    product = Product(id=1)
    product.variants.append(Variant(price=1))
    back = codec(Product).decode(codec(Product).encode(product))
    assert back == product
    assert back.model_fields_set == {"id"}


def test_fields_set_that_are_no_fields_are_corrupt() -> None:
    data = codec(Numbered).encode(Numbered(name="a"))
    text, sets = msgspec.msgpack.decode(data[1:], type=tuple[bytes, list[list[str]]])
    for forged in ([["other"]], [], [*sets, []]):
        with pytest.raises(CorruptEntryError):
            codec(Numbered).decode(b"f" + msgspec.msgpack.encode((text, forged)))


def test_what_is_kept_shares_nothing_with_the_value() -> None:
    value: dict[str, Any] = {"a": {"b": [1]}, "c": "x"}
    kept = codec().keep(value)
    assert kept.thaw is not None
    value["a"]["b"].append(2)
    first = kept.thaw(kept.body)
    first["a"]["b"].clear()
    assert kept.thaw(kept.body) == {"a": {"b": [1]}, "c": "x"}


def test_an_alias_inside_a_value_is_split_as_decoding_splits_it() -> None:
    shared = [1]
    kept = codec().keep([shared, shared])
    assert kept.thaw is not None
    thawed = kept.thaw(kept.body)
    thawed[0].append(2)
    assert thawed == [[1, 2], [1]]


def test_a_large_value_is_kept_as_bytes() -> None:
    kept = codec().keep([[n] for n in range(1000)])
    assert isinstance(kept.body, bytes)
    assert kept.thaw is not None
    assert kept.thaw(kept.body) == [[n] for n in range(1000)]
    assert kept.size < 6000


@pytest.mark.parametrize("value", ["text", "é", 5, None, 1.5, True, b"b"], ids=repr)
def test_a_scalar_is_kept_by_reference(value: Any) -> None:
    for annotation in (NOT_GIVEN, type(value), type(value) | None):
        kept = codec(annotation).keep(value)
        assert kept.body is value
        assert kept.thaw is None


# Types


class Base(DeclarativeBase):
    pass


class OrmProduct(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)


@dataclasses.dataclass
class HoldsOrm:
    product: OrmProduct


class Opaque:
    pass


@dataclasses.dataclass
class Unresolved:
    x: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


UNSUPPORTED: list[tuple[Any, str]] = [
    (OrmProduct, "ORM class"),
    (list[OrmProduct], "ORM class"),
    (HoldsOrm, "ORM class"),
    (JSONResponse, "is a response"),
    (JSONResponse | None, "is a response"),
    (Iterator[int], "only once: return a list"),
    (Iterable[Product], "only once"),
    (Generator[int], "only once") if sys.version_info >= (3, 13) else (Generator[int, None, None], "only once"),
    (AsyncIterator[int], "only once"),
    (Awaitable[int], "return its result"),
    (Callable[[int], int], "a function"),
    (T, "bare type variable"),
    (list[T], "bare type variable"),  # type: ignore[valid-type]
    (Self, "Self"),
    ("Product", "not resolved"),
    (list["Nope"], "not resolved"),  # type: ignore[name-defined]  # noqa: F821
    (Unresolved, "cannot be resolved.*Nowhere"),
    (Opaque, "nothing says how to make Opaque"),
    (dict[str, Opaque | None], "nothing says how to make Opaque"),
    (collections.OrderedDict[str, int], "nothing says how to make OrderedDict"),
    (complex, "nothing says how to make complex"),
    (memoryview, "memoryview"),
    (msgspec.Raw, "Raw"),
    (list[int] | set[int], "more than one array-like"),
    (Animal | Tree, "more than one dataclass"),
    (Product | Opaque, "Opaque"),
]


@pytest.mark.parametrize(("annotation", "why"), UNSUPPORTED, ids=repr)
def test_types_that_cannot_be_kept_are_refused_with_owner_and_advice(annotation: Any, why: str) -> None:
    with pytest.raises(UnsupportedTypeError, match=why) as caught:
        codec(annotation)
    assert str(caught.value).startswith("shop.product: values of ")
    assert "returns=" in str(caught.value)


def test_one_codec_a_type() -> None:
    assert codec(Product) is codec(Product)
    assert codec(list[Product]) is codec(list[Product])
    assert codec(Any) is codec(object) is codec(NOT_GIVEN)
    assert codec(None) is codec(types.NoneType)
    assert codec(Pet) is codec(Pet)
    for left, right in [
        (Literal[1], Literal[True]),
        (list[Literal[0]], list[Literal[False]]),
        (int | str, str | int),
        (Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=2)]),
        (list[int], list[bool]),
        (None, Any),
    ]:
        assert codec(left) is not codec(right)


def test_an_annotation_without_a_hash_still_has_a_codec() -> None:
    annotation = Annotated[Literal[1], {}]
    its = codec(annotation)
    assert its.decode(its.encode(1)) == 1


def test_a_type_alias_statement_is_seen_through() -> None:
    if sys.version_info < (3, 12):
        alias: Any = __import__("typing_extensions").TypeAliasType("Products", list[OrmProduct])
    else:
        alias = typing.TypeAliasType("Products", list[OrmProduct])
    with pytest.raises(UnsupportedTypeError, match="ORM class"):
        codec(alias)


# Hostile bytes

TYPES: list[Any] = [
    NOT_GIVEN, str, list[int], dict[str, Any], set[int], tuple[int, str], Tree, Record, Row, datetime.datetime,
    decimal.Decimal, Product, list[Product], Holder, Numbered, OpenModel,
]  # fmt: skip


class Explosive(BaseModel):
    x: int

    @pydantic.field_validator("x")
    @classmethod
    def explode(cls, value: int) -> int:
        if value == 13:
            raise RuntimeError("boom")
        return value


@pytest.mark.parametrize("annotation", TYPES, ids=repr)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\x81\xa8children\x91" * 100_000,
        b"n" + b"[" * 100_000,
        b"n" + b'{"parent":' * 100_000,
        b"f\xc1",
        b"f\x92\xc4\x02{}\x90\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\x01\x05a",
        b"\xff\xff",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_crafted_bytes_are_corrupt(annotation: Any, data: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        codec(annotation).decode(data)


def test_a_validator_that_raises_makes_bytes_corrupt() -> None:
    with pytest.raises(CorruptEntryError):
        codec(Explosive).decode(b'n{"x":13}')


@given(st.sampled_from(TYPES), st.binary(max_size=60))
def test_any_bytes_are_a_value_or_corrupt(annotation: Any, data: bytes) -> None:
    for prefix in (b"", b"n", b"a", b"f"):
        with contextlib.suppress(CorruptEntryError):
            codec(annotation).decode(prefix + data)


@given(st.sampled_from([(annotation, value) for annotation, value in KEPT if value is not None]), st.data())
def test_truncated_bytes_are_a_value_or_corrupt(case: tuple[Any, Any], data: st.DataObject) -> None:
    its = codec(case[0])
    encoded = its.encode(case[1])
    at = data.draw(st.integers(0, len(encoded) - 1))
    with contextlib.suppress(CorruptEntryError):
        its.decode(encoded[:at])


# Whatever the value

json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=30,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
trees: st.SearchStrategy[Tree] = st.deferred(lambda: st.builds(Tree, st.integers(-9, 9), st.lists(trees, max_size=3)))
variants = st.builds(Variant, price=st.floats(allow_nan=False, allow_infinity=False)) | st.builds(
    Variant, price=st.floats(allow_nan=False, allow_infinity=False), colour=texts
)
products: st.SearchStrategy[Product] = st.deferred(
    lambda: (
        st.builds(Product, id=st.integers(), variants=st.lists(variants, max_size=3))
        | st.builds(Product, id=st.integers(), note=st.none() | texts, parent=st.none() | products)
    )
)
cases: st.SearchStrategy[tuple[Any, Any]] = st.one_of(
    st.tuples(st.just(NOT_GIVEN), json_like),
    st.tuples(st.just(dict[str, Any]), st.dictionaries(texts, json_like, max_size=3)),
    st.tuples(st.just(Tree), trees),
    st.tuples(st.just(dict[str, Product | None]), st.dictionaries(texts, st.none() | products, max_size=3)),
    st.tuples(st.just(tuple[Product, ...]), st.lists(products, max_size=3).map(tuple)),
    st.tuples(st.just(list[Holder]), st.lists(st.builds(Holder, products), max_size=2)),
    st.tuples(st.just(set[decimal.Decimal]), st.sets(st.decimals(allow_nan=False, allow_infinity=False))),
    st.tuples(st.just(list[Row]), st.lists(st.fixed_dictionaries({"id": st.integers(0, 9), "tags": st.sets(texts)}))),
)


@given(cases)
@settings(max_examples=300, deadline=None)
def test_whatever_is_stored_comes_back_the_same(case: tuple[Any, Any]) -> None:
    annotation, value = case
    its = codec(annotation)
    assert same(its.decode(its.encode(value)), value)
    kept = its.keep(value)
    if kept.thaw is None:
        assert same(kept.body, value)
    else:
        first = kept.thaw(kept.body)
        assert same(first, value)
        _spoil(first)
        assert same(kept.thaw(kept.body), value)


def _spoil(value: Any) -> None:
    """Change every container of a value, the inner ones first."""
    if isinstance(value, dict):
        for item in value.values():
            _spoil(item)
        value["spoilt"] = 1
    elif isinstance(value, list):
        for item in value:
            _spoil(item)
        value.append("spoilt")
    elif isinstance(value, set):
        value.add("spoilt")
    elif isinstance(value, tuple):
        for item in value:
            _spoil(item)
    elif isinstance(value, BaseModel):
        for item in value.__dict__.values():
            _spoil(item)
        value.model_fields_set.add("spoilt")
    elif isinstance(value, (Tree, Holder)):
        for item in list(value.__dict__.values()):
            _spoil(item)
        value.__dict__["spoilt"] = 1
