"""Texts of values: another for every other value and type, the same in every process."""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import UnstableArgumentError
from asynctag.stable import stable_text
from tests.values import (
    NOON,
    Colour,
    Keyed,
    Line,
    Mapped,
    Model,
    Place,
    Point,
    Text,
    distinct,
    same,
    values,
    with_state,
)


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
        assert stable_text(Place(1, 2)).endswith("values.Place((1,2,))")
        assert stable_text(Line(1)).endswith("values.Line(x=1,y=None)")
        assert stable_text(Colour.RED).endswith("values.Colour['RED']")
        assert stable_text(Keyed(1)).endswith("values.Keyed(1)")

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
from asynctag.keys import build_key_maker
from asynctag.stable import stable_text

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
