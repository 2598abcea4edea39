"""Tags: what is one, what composites and templates give."""

import dataclasses
import datetime
import enum
import functools
import inspect
import typing
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import InvalidTagError, TagTemplateError
from asynctag.tags import MAX_TAG_BYTES, TagTemplates, check_tag, check_tags, compile_tags, tag, text_of


class Colour(enum.Enum):
    RED = "red"


class Size(enum.StrEnum):
    BIG = "big"


class Weight(enum.Enum):
    HEAVY = 1.5


class Name(str):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int


def compiled(
    function: Callable[..., object],
    spec: object,
    annotations: dict[str, object] | None = None,
    extra_names: bool = False,
) -> TagTemplates:
    return compile_tags(
        typing.cast("list[str]", spec),
        inspect.signature(function),
        owner="shop.product",
        annotations=annotations,
        extra_names=extra_names,
    )


def product(product_id: object, region: object = "eu", *rest: object, **others: object) -> None: ...


class TestCheckTag:
    @pytest.mark.parametrize("good", ["product:635", "é", "x" * MAX_TAG_BYTES, "é" * 512, "a b\n"])
    def test_a_tag_comes_back_as_it_is(self, good: str) -> None:
        """Any text of up to 1 KiB is a tag."""
        assert check_tag(good) is good

    def test_a_subclass_of_str_becomes_plain(self) -> None:
        """What is kept as a tag is exactly a str."""
        assert type(check_tag(Name("a"))) is str

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (5, "a tag is a str, not int"),
            (None, "NoneType"),
            (b"x", "bytes"),
            ("", "empty"),
            ("x" * (MAX_TAG_BYTES + 1), "1025 bytes"),
            ("é" * 513, "1026 bytes"),
            ("a\ud800", "lone surrogate"),
            (Size.BIG, r"\.value"),
        ],
    )
    def test_what_is_no_tag_is_refused_with_the_reason(self, bad: object, said: str) -> None:
        """The error names the value, shortened, and what is wrong with it."""
        with pytest.raises(InvalidTagError, match=said) as caught:
            check_tag(bad)
        assert len(str(caught.value)) < 250

    def test_order_stays_and_repetitions_go(self) -> None:
        """Tags are a set that keeps its order."""
        assert check_tags(["b", "a", "b"]) == ("b", "a")
        assert check_tags(name for name in "ab") == ("a", "b")

    @pytest.mark.parametrize("bad", ["product", b"product", 5, None])
    def test_one_string_is_not_a_list(self, bad: typing.Any) -> None:
        """A bare string would be taken for a tag a letter."""
        with pytest.raises(InvalidTagError, match="give a list"):
            check_tags(bad)

    def test_a_bad_tag_in_a_list_is_refused(self) -> None:
        """Each one is checked."""
        with pytest.raises(InvalidTagError, match="empty"):
            check_tags(["a", ""])


class TestTag:
    def test_criteria_are_sorted_by_name(self) -> None:
        """The order in which they are given does not matter."""
        assert tag(type=1, category=15) == "category:15;type:1" == tag(category=15, type=1)
        assert tag(**{"type.id": 1, "category.id": 15}) == "category.id:15;type.id:1"

    def test_separators_in_values_are_escaped(self) -> None:
        """A value can't pretend to be another criterion."""
        assert tag(a="1;b:2") == "a:1%3Bb%3A2"
        assert tag(a="1%3B") == "a:1%253B"
        assert tag(a="\n\x85é") == "a:%0A%C2%85é"

    @pytest.mark.parametrize("name", ["", "a:b", "a;b", "a%b", "a\n"])
    def test_separators_in_names_are_refused(self, name: str) -> None:
        """A name is written by the programmer, so it need not be escaped."""
        with pytest.raises(InvalidTagError, match="no name of a criterion"):
            tag(**{name: 1})

    def test_no_criteria_is_an_error(self) -> None:
        """There is no tag of everything."""
        with pytest.raises(InvalidTagError, match="without criteria"):
            tag()

    def test_a_value_without_text_is_named(self) -> None:
        """The error says which criterion it is."""
        with pytest.raises(InvalidTagError, match=r"criterion 'on' of tag\(\) is bool"):
            tag(on=True)

    def test_a_composite_is_a_tag(self) -> None:
        """The limit holds for it too."""
        with pytest.raises(InvalidTagError, match="bytes"):
            tag(a="x" * 1024)

    names = st.text(st.sampled_from("ab."), min_size=1, max_size=2)
    texts = st.text(st.sampled_from("a:;%3B\n\x85é1"), max_size=6) | st.text(max_size=4)
    criteria = st.dictionaries(names, texts)

    @given(criteria.filter(bool), criteria.filter(bool))
    def test_different_criteria_never_give_one_tag(self, one: dict[str, str], other: dict[str, str]) -> None:
        """The composite is injective."""
        try:
            tags = tag(**one), tag(**other)
        except InvalidTagError:
            return
        assert (tags[0] == tags[1]) == (one == other)


class TestTextOf:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("a", "a"),
            (Name("a"), "a"),
            (5, "5"),
            (-5, "-5"),
            (Colour.RED, "red"),
            (Size.BIG, "big"),
            (datetime.date(2026, 1, 2), "2026-01-02"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ],
    )
    def test_what_has_one_obvious_text_has_it(self, value: object, text: str) -> None:
        """Exactly these types may stand in a tag."""
        found = text_of(value, "x")
        assert (found, type(found)) == (text, str)

    @pytest.mark.parametrize(
        "value",
        [
            *(True, 1.0, None, b"a", datetime.datetime(2026, 1, 1), [1], (1,), {1: 1}, {1}, object(), Weight.HEAVY),
            pytest.param(10**5000, id="thousands of digits"),
        ],
    )
    def test_the_rest_is_refused(self, value: object) -> None:
        """Text with more than one form would miss the invalidation."""
        with pytest.raises(InvalidTagError, match="the parameter 'x' of f"):
            text_of(value, "the parameter 'x' of f")


class TestTemplates:
    def test_parameters_are_filled_in(self) -> None:
        """Names in braces stand for arguments; doubled braces for braces."""
        tags = compiled(product, ["product:{product_id}", "{region}-{{x}}{product_id}", "all"])
        assert tags.constant is None
        assert tags({"product_id": 635, "region": Colour.RED}) == ("product:635", "red-{x}635", "all")

    def test_without_names_nothing_is_done_a_call(self) -> None:
        """Literal tags are one constant tuple."""
        tags = compiled(product, ["a", "{{b}}", "a"])
        assert tags.constant == ("a", "{b}")
        assert tags({}) is tags({}) is tags.constant
        assert compiled(product, None).constant == () == compiled(product, []).constant

    @pytest.mark.parametrize(
        "template",
        ["{product_id.x}", "{product_id[0]}", "{product_id!r}", "{product_id:02d}", "{}", "{0}", "{ region }"],
    )
    def test_only_plain_names_are_accepted(self, template: str) -> None:
        """Formats and attributes belong in a function."""
        with pytest.raises(TagTemplateError, match="give tags= a function"):
            compiled(product, [template])

    @pytest.mark.parametrize("template", ["{", "}", "{product_id", "a}b"])
    def test_a_malformed_template_is_refused(self, template: str) -> None:
        """It is seen when the code is imported."""
        with pytest.raises(TagTemplateError, match="malformed"):
            compiled(product, [template])

    def test_an_unknown_name_is_named_with_the_nearest(self) -> None:
        """A slip of the pen is found at decoration."""
        with pytest.raises(TagTemplateError, match=r"'produkt_id'.*There are: product_id, region.*mean 'product_id'"):
            compiled(product, ["{produkt_id}"])
        with pytest.raises(TagTemplateError, match="no parameters"):
            compiled(lambda: None, ["{x}"])

    @pytest.mark.parametrize("name", ["rest", "others"])
    def test_parameters_of_any_number_cannot_be_named(self, name: str) -> None:
        """A tuple or a dict has no text."""
        with pytest.raises(TagTemplateError, match="any number of arguments"):
            compiled(product, [f"{{{name}}}"], extra_names=True)

    @pytest.mark.parametrize(
        "annotation",
        [
            *(float, bool, bytes, datetime.datetime, list, dict, set, tuple, type(None), None, Point),
            *(list[int], dict[str, int], set[int], tuple[int, ...], typing.Annotated[float, "x"]),
            typing.NewType("Price", float),
        ],
    )
    def test_an_annotation_without_text_is_refused_at_once(self, annotation: object) -> None:
        """No value of such a type could be filled in."""
        with pytest.raises(TagTemplateError, match="'product_id', which is"):
            compiled(product, ["{product_id}"], {"product_id": annotation})

    @pytest.mark.parametrize(
        "annotation",
        [
            *(int, str, uuid.UUID, datetime.date, Colour, Weight, int | None, float | int, typing.Any, object),
            *(typing.TypeVar("T"), "Product", typing.Literal[1], typing.Annotated[int, "x"], float | None),
        ],
    )
    def test_what_may_have_text_is_left_to_run_time(self, annotation: object) -> None:
        """Only what is plainly refused is refused early."""
        assert compiled(product, ["{product_id}"], {"product_id": annotation})({"product_id": 1}) == ("1",)

    def test_a_value_without_text_is_refused_at_run_time(self) -> None:
        """The error names the parameter and the function."""
        with pytest.raises(InvalidTagError, match=r"parameter 'product_id' of shop.product is float.*function"):
            compiled(product, ["{product_id}"])({"product_id": 1.5})

    @pytest.mark.parametrize("spec", ["product", b"x", 5, [5], [Size.BIG]])
    def test_what_is_no_list_of_strings_is_refused(self, spec: object) -> None:
        """A bare string would be a template a letter."""
        with pytest.raises(TagTemplateError, match="give"):
            compiled(product, spec)

    def test_a_literal_that_is_no_tag_is_refused_at_once(self) -> None:
        """It would fail at every call."""
        with pytest.raises(InvalidTagError):
            compiled(product, [""])

    def test_a_filled_template_is_checked(self) -> None:
        """An argument may make it too long, or empty."""
        with pytest.raises(InvalidTagError):
            compiled(product, ["{product_id}"])({"product_id": ""})

    def test_extra_names_are_found_at_run_time(self) -> None:
        """Where the names are known only by the request, a missing one is named then."""
        tags = compiled(product, ["{shop}"], extra_names=True)
        assert tags({"shop": 1}) == ("1",)
        with pytest.raises(TagTemplateError, match=r"'shop'.*mean 'shops'"):
            tags({"shops": 1})


class TestFunctions:
    arguments: typing.ClassVar = {"product_id": 635, "region": "eu", "rest": (), "others": {}}

    def test_a_function_gets_the_arguments_that_it_names(self) -> None:
        """Defaults of its own stay; the rest is not passed."""
        assert compiled(product, lambda product_id, own=7: [f"p:{product_id}:{own}"])(self.arguments) == ("p:635:7",)
        assert compiled(product, lambda: ["a", "a"])(self.arguments) == ("a",)
        assert compiled(product, lambda **all_of_them: all_of_them)(self.arguments) == tuple(self.arguments)

    def test_what_it_returns_is_checked(self) -> None:
        """A string is no list there either."""
        with pytest.raises(InvalidTagError, match="give a list"):
            compiled(product, lambda: "abc")(self.arguments)

    def test_a_parameter_that_is_not_there_is_named(self) -> None:
        """It is seen at decoration."""
        with pytest.raises(TagTemplateError, match=r"'produkt_id'.*mean 'product_id'"):
            compiled(product, lambda produkt_id: [])

    def test_an_async_function_is_refused(self) -> None:
        """Tags that must be awaited are added late."""

        async def late(product_id: int) -> list[str]:
            return []

        class Late:
            async def __call__(self) -> list[str]:
                return []

        for function in (late, Late(), functools.partial(late, 1)):
            with pytest.raises(TagTemplateError, match="add_tags"):
                compiled(product, function)

    def test_arguments_are_given_by_name(self) -> None:
        """A function that can't be called so is refused, as is one that can't be read."""

        def positional(product_id: int, /) -> list[str]:
            return []

        with pytest.raises(TagTemplateError, match="by position only"):
            compiled(product, positional)
        with pytest.raises(TagTemplateError, match="no signature"):
            compiled(product, dict)

    def test_extra_names_are_found_at_run_time(self) -> None:
        """As in templates."""
        tags = compiled(product, lambda shop: [shop], extra_names=True)
        assert tags({"shop": "s"}) == ("s",)
        with pytest.raises(TagTemplateError, match="'shop'"):
            tags({})
