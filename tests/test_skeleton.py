"""Skeletons as bytes: what was written can be read, and nothing else is taken for one."""

import contextlib
import dataclasses
import html
import typing
from collections.abc import Callable
from typing import Any

import markupsafe
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctag import CorruptEntryError, ValueNotCacheableError, WindowError
from asynctag.codec import NOT_GIVEN, Codec, codec_for
from asynctag.placeholders import Place, Placeholder, Places
from asynctag.same import texts
from asynctag.skeleton import MARK, Hole, Skeleton, read_skeleton

BADGE = Place("shop|badge", msgspec.msgpack.encode({"size": 2}))
CART = Place("shop|cart", b"\x80")


@dataclasses.dataclass
class Page:
    title: str
    body: str
    tags: list[str] = dataclasses.field(default_factory=list)


class Item(msgspec.Struct):
    name: str
    price: float = 0.0


class Box(typing.TypedDict):
    name: str
    items: typing.NotRequired[list[str]]


class Pair(typing.NamedTuple):
    left: str
    right: int


class Model(pydantic.BaseModel):
    name: str
    number: int = 0
    share: float = 0.5
    inner: "list[Model]" = []


class Data(pydantic.BaseModel):
    data: bytes


class Renewed(pydantic.BaseModel):
    """With a default that is made anew: all of its fields are written, and which were set."""

    name: str
    at: list[str] = pydantic.Field(default_factory=lambda: ["made anew"])


class Aliased(pydantic.BaseModel):
    """Looks at its raw input: written by its aliases."""

    name: str = pydantic.Field(alias="the-name")

    @pydantic.model_validator(mode="before")
    @classmethod
    def only_by_alias(cls, given: Any) -> Any:
        assert "the-name" in given
        return given


def codec(annotation: object = NOT_GIVEN) -> Codec:
    return codec_for(annotation, owner="test")


Make = Callable[[Placeholder[Any], Placeholder[Any]], Any]

#: What is annotated, what is computed with two placeholders, and the letter of Pydantic's way.
VALUES: dict[str, tuple[object, Make, str]] = {
    "a text": (str, lambda badge, cart: f"<p>{badge}</p>{cart}", ""),
    "a whole text": (str, lambda badge, cart: badge, ""),
    "a text or not": (str | None, lambda badge, cart: f"{badge}{cart}", ""),
    "bytes": (bytes, lambda badge, cart: b"<p>" + badge.encode() + b"</p>", ""),
    "whole bytes": (bytes, lambda badge, cart: badge.encode(), ""),
    "Markup": (markupsafe.Markup, lambda badge, cart: markupsafe.Markup("<p>%s</p>") % badge, ""),
    "no annotation, a text": (NOT_GIVEN, lambda badge, cart: f"{badge}!", ""),
    "no annotation, whole": (NOT_GIVEN, lambda badge, cart: badge, ""),
    "no annotation": (NOT_GIVEN, lambda badge, cart: {"a": [badge, {"b": f"{cart}, {badge}"}], "n": 2**63}, ""),
    "bytes in a list": (NOT_GIVEN, lambda badge, cart: [b"\x00" + badge.encode(), None, 1.5, True], ""),
    "dict": (dict[str, Any], lambda badge, cart: {"a": badge, "b": {"c": [f"x{cart}"]}}, ""),
    "dict by numbers": (dict[int, str], lambda badge, cart: {1: badge, -2: "", 2**63: f"{cart} "}, ""),
    "list": (list[str], lambda badge, cart: [badge, "", f"{cart}"], ""),
    "tuple": (tuple[str, int, str], lambda badge, cart: (badge, 1, f"<{cart}"), ""),
    "named tuple": (Pair, lambda badge, cart: Pair(badge, 1), ""),
    "set": (set[str], lambda badge, cart: {badge, "a", "b", f"{cart}."}, ""),
    "dataclass": (Page, lambda badge, cart: Page(badge, f"{cart}{cart}", [badge]), ""),
    "dataclasses": (list[Page], lambda badge, cart: [Page("", ""), Page(badge, f"{cart}", ["", f"a{badge}"])], ""),
    "struct": (Item, lambda badge, cart: Item(f"{badge}", 1.0), ""),
    "typed dict": (Box, lambda badge, cart: {"name": badge, "items": [cart]}, ""),
    "model": (Model, lambda badge, cart: Model(name=badge, inner=[Model(name=f"<{cart}", number=-1)]), "n"),
    "a model's large numbers": (
        Model,
        lambda badge, cart: Model(name=badge, number=2**80, share=1e300, inner=[Model(name="", number=-(2**90))]),
        "n",
    ),
    "model that was not checked": (Model, lambda badge, cart: Model.model_construct(name=badge), "n"),
    "a model's bytes": (Data, lambda badge, cart: Data(data=b"<" + badge.encode()), "n"),
    "a model's whole bytes": (Data, lambda badge, cart: Data(data=badge.encode()), "n"),
    "models": (dict[str, list[Model]], lambda badge, cart: {"a": [Model(name=badge), Model(name=f"{cart}")]}, "n"),
    "model with what is made anew": (Renewed, lambda badge, cart: Renewed(name=f"{badge} {cart}"), "f"),
    "model by alias": (Aliased, lambda badge, cart: Aliased(**{"the-name": badge}), "a"),
}


def made(annotation: object, make: Make) -> tuple[Skeleton, Places]:
    places = Places("page()")
    skeleton = codec(annotation).skeleton(make(places.place(BADGE), places.place(CART)), places)
    assert skeleton is not None
    return skeleton, places


def results(badge: Any = "a badge", cart: Any = "a cart") -> dict[tuple[str, bytes], Any]:
    return {(BADGE.name, BADGE.params): badge, (CART.name, CART.params): cart}


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(("annotation", "make", "way"), VALUES.values(), ids=VALUES)
def test_what_is_filled_is_what_plain_python_makes(annotation: object, make: Make, way: str) -> None:
    """As it was computed, and as it was read: the value with what the windows returned in their places."""
    skeleton, _ = made(annotation, make)
    expected: Any = make("a badge", "a cart")  # type: ignore[arg-type]
    assert skeleton.way[:1] == way.encode()
    assert same(skeleton.filled(results()), expected)
    read = codec(annotation).decode(skeleton.encode())
    assert type(read) is Skeleton
    assert same(read.filled(results()), expected)
    assert read.encode() == skeleton.encode()


@pytest.mark.parametrize(("annotation", "make", "way"), VALUES.values(), ids=VALUES)
def test_what_is_placed_is_what_was_computed(annotation: object, make: Make, way: str) -> None:
    """In another computation: of the annotated type, and it makes the same skeleton there."""
    skeleton, _ = made(annotation, make)
    places = Places("another()")
    placed = skeleton.placed(places)
    again = codec(annotation).skeleton(placed, places)
    assert again is not None
    assert same(again.filled(results()), skeleton.filled(results()))
    assert set(again.places) == set(skeleton.places)
    if annotation is not NOT_GIVEN:
        assert not any(type(text) is Placeholder for text in texts(placed))


@pytest.mark.parametrize(("annotation", "make", "way"), VALUES.values(), ids=VALUES)
def test_nothing_of_a_placeholder_is_stored(annotation: object, make: Make, way: str) -> None:
    """No number of its computation, and nothing that evaluates: text, names and parameters."""
    skeleton, places = made(annotation, make)
    stored = skeleton.encode()
    assert not places.stands_in(stored)
    for digits in (places._before, places._after):
        assert not any(digits[at : at + 8].encode() in stored for at in range(len(digits) - 7))
    assert b"shop|badge" in stored


def test_without_annotation_a_template_may_ask_for_html() -> None:
    """What is anything may be Markup; what is annotated as text is text."""
    bold = results(markupsafe.Markup("<b>"))
    for annotation, expected in ((NOT_GIVEN, "<b>"), (str, "&lt;b&gt;"), (dict[str, str], "&lt;b&gt;")):
        whole = annotation is str
        skeleton, _ = made(annotation, lambda badge, cart, whole=whole: badge if whole else {"a": badge})
        places = Places("another()")
        placed = skeleton.placed(places)
        page = markupsafe.Markup("%s") % (placed if isinstance(placed, str) else placed["a"])
        outer = codec(markupsafe.Markup).skeleton(page, places)
        assert outer is not None
        assert outer.filled(bold) == expected


GOLDEN = (
    "c193c400c41483a57469746c65a0a16e01a468746d6c92c400a0939391a57469746c6592a0a09193aa73686f707c62616467"
    "65c40781a473697a6502a09392a468746d6c0092c401ffc4009193a973686f707c63617274c40180a09392a468746d6c0193"
    "aa3c61207469746c653d27a2273ea09293aa73686f707c6261646765c40781a473697a6502a16593a973686f707c63617274"
    "c40180a168"
)


def test_golden_bytes() -> None:
    """What was stored once is read by every later version: the layout stays, or gets another mark."""
    skeleton, _ = made(
        NOT_GIVEN,
        lambda badge, cart: {
            "title": badge,
            "n": 1,
            "html": [b"\xff" + cart.encode(), f"<a title='{html.escape(f'{badge}')}'>{markupsafe.escape(cart)}"],
        },
    )
    golden = bytes.fromhex(GOLDEN)
    assert skeleton.encode() == golden
    read = read_skeleton(golden, codec())
    assert read.filled(results("<b>", markupsafe.Markup("<c>"))) == {
        "title": "<b>",
        "n": 1,
        "html": [b"\xff<c>", "<a title='&lt;b&gt;'><c>"],
    }


def test_golden_bytes_of_a_text() -> None:
    """The shortest that there is."""
    skeleton, _ = made(str, lambda badge, cart: f"Hello {cart}")
    assert (
        skeleton.encode()
        == b"\xc1\x93\xc4\x00\xc4\x00\x91\x93\x90\x92\xa6Hello \xa0\x91\x93\xa9shop|cart\xc4\x01\x80\xa0"
    )


def test_no_value_is_taken_for_a_skeleton() -> None:
    """No codec begins with the mark, whatever the value is, if it is bytes that begin with it."""
    for annotation, value in [
        (NOT_GIVEN, b"\xc1"), (NOT_GIVEN, "\xc1"), (bytes, MARK), (bytes, made(str, VALUES["a text"][1])[0].encode()),
        (str, "Á"), (list[bytes], [MARK]), (Model, Model(name="Á")), (NOT_GIVEN, -63), (NOT_GIVEN, {}),
    ]:  # fmt: skip
        data = codec(annotation).encode(value)
        assert data[:1] != MARK
        assert codec(annotation).decode(data) == value


# --- what is read from elsewhere


def readings(data: bytes, annotation: object) -> Any:
    """What comes of bytes that somebody else may have written: a value, or that there is none."""
    try:
        value = codec(annotation).decode(data)
    except CorruptEntryError:
        return None
    if type(value) is not Skeleton:
        return value
    places = Places("another()")
    placed = value.placed(places)
    with contextlib.suppress(WindowError, ValueNotCacheableError):
        codec(annotation).skeleton(placed, places)
    found = {(place.name, place.params): "a text" for place in value.places}
    try:
        return value.filled(found)
    except WindowError:  # it does not fit its type, once it is filled
        return None


SOME = ("a text", "bytes", "no annotation", "dict", "dataclass", "model", "model with what is made anew", "Markup")


@pytest.mark.parametrize("name", SOME)
def test_every_byte_changed_once(name: str) -> None:
    """A value or none, and never another error: whatever one byte is changed to."""
    annotation, make, _ = VALUES[name]
    data = made(annotation, make)[0].encode()
    for at in range(len(data)):
        for value in {data[at] ^ (1 << bit) for bit in range(8)} | {0, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC7, 0xD4, 0xFF}:
            readings(data[:at] + bytes([value]) + data[at + 1 :], annotation)


@pytest.mark.parametrize("name", SOME)
def test_every_way_of_cutting_it_short(name: str) -> None:
    """Never half a value."""
    annotation, make, _ = VALUES[name]
    data = made(annotation, make)[0].encode()
    for length in range(1, len(data)):
        with pytest.raises(CorruptEntryError):
            codec(annotation).decode(data[:length])
    with pytest.raises(CorruptEntryError):
        codec(annotation).decode(data + b"\x00")


@settings(deadline=None)
@given(data=st.binary(), annotation=st.sampled_from([NOT_GIVEN, str, dict[str, str], Page, Model, Renewed]))
def test_any_bytes_behind_the_mark(data: bytes, annotation: object) -> None:
    """A value or none."""
    readings(MARK + data, annotation)


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(0, 3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip

paths = st.lists(st.integers(-1, 3) | st.sampled_from(["", "a", "b"]), max_size=3).map(tuple)


@st.composite
def stored(draw: st.DrawFn) -> bytes:
    """Nearly skeletons: of the right parts, and whatever is in them."""
    holes = [
        [
            draw(paths),
            draw(
                st.sampled_from([["", ""], ["a", "b"], [b"", b""], ["", b""], ["a"], [], [1, 2], ["", "", ""], plain])
            ),
            draw(
                st.lists(
                    st.tuples(
                        st.sampled_from(["shop|badge", "|", "", "x"]),
                        st.sampled_from([b"", b"\x80", b"\xc1"]),
                        st.sampled_from(["", "h", "e", "he", "v", "V", "z", "e" * 40, "juse"]),
                    ),
                    max_size=2,
                )
            ),
        ]
        for plain in draw(st.lists(plain_data, max_size=3))
    ]
    tree = draw(st.one_of(plain_data, st.sampled_from([{"a": "", "b": ["", b""]}, ["", {"a": ""}, ""]])))
    packed = msgspec.msgpack.encode(tree)
    way = draw(st.sampled_from([b"", b"n", b"f", b"a", b"f\x91\x91\xa4name", b"\xff"]))
    return MARK + msgspec.msgpack.encode([way, draw(st.sampled_from([packed, b"", b"\xc1", b'{"name":""}'])), holes])


@settings(deadline=None)
@given(data=stored(), annotation=st.sampled_from([NOT_GIVEN, str, bytes, Any, list[Any], dict[str, Any], Page, Model]))
def test_nearly_skeletons(data: bytes, annotation: object) -> None:
    """Paths that lead nowhere, texts that are none, holes in holes: a value or none."""
    readings(data, annotation)


def hole(*path: str | int, parts: tuple[Any, ...] = ("", ""), place: Place = BADGE, times: int = 1) -> Hole:
    return Hole(path, parts, (place,) * times)


def packed(tree: Any, *holes: Hole, way: bytes = b"") -> bytes:
    return Skeleton(codec(), way, msgspec.msgpack.encode(tree) if tree is not None else b"", holes).encode()


TAMPERED: dict[str, tuple[object, bytes]] = {
    "no holes": (NOT_GIVEN, packed({"a": ""})),
    "a path that leads nowhere": (NOT_GIVEN, packed({"a": ""}, hole("b"))),
    "a path too far": (NOT_GIVEN, packed([""], hole(1))),
    "a path to no text": (NOT_GIVEN, packed({"a": 1}, hole("a"))),
    "a path to another text": (NOT_GIVEN, packed({"a": "x"}, hole("a"))),
    "a path to bytes": (NOT_GIVEN, packed({"a": b""}, hole("a"))),
    "a path into a text": (NOT_GIVEN, packed({"a": "x"}, hole("a", 0))),
    "a path into a number": (NOT_GIVEN, packed({"a": 5}, hole("a", "b"))),
    "the same path twice": (NOT_GIVEN, packed({"a": ""}, hole("a"), hole("a"))),
    "a path behind another": (NOT_GIVEN, packed({"a": ""}, hole("a"), hole("a", "b"))),
    "a hole beside the whole": (NOT_GIVEN, packed({"a": ""}, hole(), hole("a"))),
    "the whole beside a hole": (NOT_GIVEN, packed({"a": ""}, hole("a"), hole())),
    "a tree beside a text": (NOT_GIVEN, packed({"a": ""}, hole())),
    "no tree": (NOT_GIVEN, packed(None, hole("a"))),
    "no windows": (NOT_GIVEN, packed({"a": ""}, hole("a", parts=("",), times=0))),
    "more windows than parts": (NOT_GIVEN, packed({"a": ""}, hole("a", times=2))),
    "more parts than windows": (NOT_GIVEN, packed({"a": ""}, hole("a", parts=("", "", "")))),
    "parts of two types": (NOT_GIVEN, packed({"a": ""}, hole("a", parts=("", b"")))),
    "parts that are no text": (NOT_GIVEN, packed({"a": ""}, hole("a", parts=(1, 2)))),
    "an unknown step": (NOT_GIVEN, packed({"a": ""}, hole("a", place=Place("|x", b"", "hx")))),
    "steps without an end": (NOT_GIVEN, packed({"a": ""}, hole("a", place=Place("|x", b"", "e" * 33)))),
    "an extension in the tree": (NOT_GIVEN, packed({"a": "", "b": msgspec.msgpack.Ext(5, b"x")}, hole("a"))),
    "an extension as a part": (NOT_GIVEN, packed({"a": ""}, hole("a", parts=("", msgspec.msgpack.Ext(5, b"x"))))),
    "what is nested too deeply": (NOT_GIVEN, MARK + b"\x93\xc4\x00\xc4\x00" + b"\x91" * 5000),
    "another type": (Page, packed({"title": "", "body": 5}, hole("title"))),
    "a field that there is not": (Page, packed({"title": "", "body": ""}, hole("tags"))),
    "no way to write models": (Model, packed({"name": ""}, hole("name"), way=b"")),
    "the wrong way to write models": (Model, packed({"name": ""}, hole("name"), way=b"x")),
    "sets that are none": (Renewed, packed({"name": ""}, hole("name"), way=b"f\xc1")),
}  # fmt: skip


@pytest.mark.parametrize(("annotation", "data"), TAMPERED.values(), ids=TAMPERED)
def test_what_nobody_stored(annotation: object, data: bytes) -> None:
    """Refused as it is read, before any window runs."""
    with pytest.raises(CorruptEntryError):
        codec(annotation).decode(data)


def test_another_type_under_the_same_key() -> None:
    """A skeleton of one type is not read as another."""
    skeleton, _ = made(dict[str, Any], lambda badge, cart: {"a": badge})
    with pytest.raises(CorruptEntryError):
        codec(Page).decode(skeleton.encode())
    with pytest.raises(CorruptEntryError):
        codec(bytes).decode(made(str, lambda badge, cart: f"{badge}!")[0].encode())


# --- what cannot be kept


def refusal(annotation: object, make: Make) -> str:
    with pytest.raises((WindowError, ValueNotCacheableError)) as caught:
        made(annotation, make)
    return str(caught.value)


def test_a_window_in_a_key() -> None:
    """Said with where it stands, and what to do."""
    for annotation in (NOT_GIVEN, dict[str, Any]):
        said = refusal(annotation, lambda badge, cart: {"a": [{badge: 1}]})
        assert said == "value['a'][0]: a window stands in a key: place it in a value"
        assert "in a key" in refusal(annotation, lambda badge, cart: {"a": {f"x{cart}": badge}})


def test_below_a_key_that_has_no_path() -> None:
    """Said with which."""
    for annotation, key in ((dict[bool, str], True), (dict[tuple[int, int], str], (1, 2)), (dict[float, str], 1.5)):
        assert "neither str nor int: make a list" in refusal(annotation, lambda badge, cart, key=key: {key: badge})


def test_where_text_does_not_fit() -> None:
    """A field of another type, or with a limit, takes no placeholder: said with the field."""

    @dataclasses.dataclass
    class Counted:
        count: int

    @dataclasses.dataclass
    class Short:
        name: typing.Annotated[str, msgspec.Meta(max_length=10)]

    class Strict(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=10)

    assert "Counted.count" in refusal(Counted, lambda badge, cart: Counted(badge))  # type: ignore[arg-type]
    assert "Short.name" in refusal(Short, lambda badge, cart: Short(badge))
    with pytest.raises(pydantic.ValidationError):
        made(Strict, lambda badge, cart: Strict(name=badge))


def test_text_that_is_not_written_as_text() -> None:
    """Where a placeholder cannot be found again, nothing is stored, and nobody gets it."""

    class Encoded(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        data: bytes
        name: str = ""

    said = refusal(Encoded, lambda badge, cart: Encoded(data=badge.encode()))
    assert "a window stands where no text is written" in said
    assert "place it in a str" in said
    assert said == refusal(Encoded, lambda badge, cart: Encoded(data=badge.encode(), name=cart))
    skeleton, _ = made(Encoded, lambda badge, cart: Encoded(data=b"\x00\xff", name=cart))
    assert skeleton.filled(results()) == Encoded(data=b"\x00\xff", name="a cart")


def test_text_that_is_no_unicode() -> None:
    """Refused with windows in it as it is without, on every backend."""
    for annotation, make in ((str, lambda badge, cart: f"\ud800{badge}"), (Any, lambda badge, cart: [badge, "\udfff"])):
        assert "surrogates not allowed" in refusal(annotation, make)


def test_values_without_windows_are_none_of_it() -> None:
    """Whatever is cached beside them."""
    places = Places("page()")
    places.place(BADGE)
    for annotation, value in [
        (NOT_GIVEN, {"a": 1}), (str, "text"), (bytes, b"\xc1"), (Model, Model(name="x", number=2**100)),
        (int, 2**64 - 1), (dict[bool, str], {True: "x"}), (float, float("nan")),
        (markupsafe.Markup, markupsafe.Markup("<b>")),
    ]:  # fmt: skip
        assert codec(annotation).skeleton(value, places) is None


def test_markup_is_annotated() -> None:
    """Unannotated it would come back as str."""
    said = refusal(NOT_GIVEN, lambda badge, cart: markupsafe.Markup("<b>%s</b>") % badge)
    assert "Markup came back as str" in said
    assert "annotate it" in said


def test_a_placeholder_that_was_kept() -> None:
    """Of another computation: said with which window it is, and whose it was."""
    kept = Places("before()").place(BADGE)
    for annotation, value in ((NOT_GIVEN, {"a": [kept]}), (Any, kept), (Page, Page(kept, ""))):
        said = refusal(annotation, lambda badge, cart, value=value: value)
        assert said.startswith("a placeholder of badge was kept from before(): place the window anew")


# --- what windows returned


def test_what_does_not_fit_the_annotation() -> None:
    """Said with the windows, and what is expected."""
    for annotation, make, badge in [
        (dict[str, str], lambda badge, cart: {"a": badge}, 5),
        (str, lambda badge, cart: badge, None),
        (Page, lambda badge, cart: Page(badge, ""), ["a"]),
        (Model, lambda badge, cart: Model(name=badge), {"a": 1}),
        (Model, lambda badge, cart: Model(name=badge), object()),
        (dict[str, str], lambda badge, cart: {"a": badge}, 2**70),
        (dict[str, str], lambda badge, cart: {"a": badge}, "\ud800"),
    ]:
        skeleton, _ = made(annotation, make)
        with pytest.raises(WindowError, match="with what badge returned, the value is not what it is annotated as"):
            skeleton.filled(results(badge))


def test_what_is_no_text_in_a_text() -> None:
    """Neither in str nor in bytes."""
    for annotation, make in ((str, VALUES["a text"][1]), (bytes, VALUES["bytes"][1])):
        for badge in (5, None, {"a": 1}, [1]):
            with pytest.raises(WindowError, match="badge returned what cannot stand where it was placed"):
                made(annotation, make)[0].filled(results(badge))


@pytest.mark.parametrize("badge", [None, 5, True, 1.5, ["a", {"b": None}], {"a": [1]}, "text", ""])
def test_any_value_where_a_string_was_one_window(badge: Any) -> None:
    """As plain Python would put it there."""
    for annotation, make in [
        (NOT_GIVEN, lambda badge, cart: {"a": badge, "b": [badge]}),
        (dict[str, Any], lambda badge, cart: {"a": badge, "b": [badge]}),
        (NOT_GIVEN, lambda badge, cart: badge),
        (Any, lambda badge, cart: badge),
    ]:
        assert same(made(annotation, make)[0].filled(results(badge)), make(badge, ""))


def test_a_skeleton_is_shared_and_not_changed() -> None:
    """Each serve gets a value of its own."""
    skeleton, _ = made(NOT_GIVEN, VALUES["no annotation"][1])
    first = skeleton.filled(results())
    first["a"].clear()
    assert same(skeleton.filled(results()), VALUES["no annotation"][1]("a badge", "a cart"))  # type: ignore[arg-type]


def test_size_and_repr() -> None:
    """What it takes of memory is told about right; a log does not hold the page."""
    skeleton, _ = made(str, lambda badge, cart: f"{'x' * 10_000}{badge}")
    assert 10_000 < skeleton.size < 11_000
    assert repr(skeleton) == "<Skeleton of <Codec str>, 1 windows>"
