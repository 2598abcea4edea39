"""No stored response of one user reaches another, unless the application said so; and the docs say where it does.

The corpus is every combination of how users tell who they are, what the route says, what the response says, and what
the middleware stores. What happens in each is held against an oracle, and against the table in `docs/security.md`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from asynctag.http.rules import Store
from tests.http.corpus import (
    ANSWERS,
    COOKIES_NAMES_IT,
    HALVES,
    IDENTITY,
    NO_COOKIES,
    NOBODY,
    ORDERS,
    PARAMETER,
    PLACES,
    PUBLIC_GUARD,
    REFUSED,
    SHARED,
    UNDECORATED,
    USERS,
    VARY_NAMES_IT,
    Answer,
    Place,
    Seen,
    observe,
    observe_at_once,
    outcome_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module", params=HALVES, ids=["declared", "rfc9111"])
def seen(request: pytest.FixtureRequest) -> Seen:
    store, loop = request.param
    return anyio.run(observe, store, backend=loop)


# --- the oracle -----------------------------------------------------------------------------------------


def may_get_the_page_of(whose: str, place: Place, answer: Answer) -> bool:
    """Whether the application itself said that others may have a page that was made for `whose`."""
    carrier, saying = place.carrier, place.saying
    if carrier.name == "nothing":
        return True  # the page names nobody
    if answer.for_one or (carrier.header is not None and answer.varies_by(carrier) == carrier.header):
        return False  # the response says that it is for one, or who has which
    if saying in (VARY_NAMES_IT, COOKIES_NAMES_IT, PUBLIC_GUARD):
        return False  # the developer did
    response_says_so = answer.for_all or (place.store == "rfc9111" and answer.has_lifetime)
    if carrier.header == "Authorization":
        return False  # RFC 9111 §3.5 would let `public` say so: stricter here, since nobody is asked
    if carrier.header == "Cookie":
        return saying is NO_COOKIES  # a promise of the developer's that cookies don't matter
    if saying is PARAMETER and carrier.header is not None:
        return response_says_so and whose == NOBODY  # FastAPI knows the header
    # What the cache cannot know: a header that nobody named, the client's address.
    return saying is not UNDECORATED or response_says_so


def wrongly_served(seen: Seen) -> list[str]:
    """Who got a page of another that the application did not let them have."""
    return [
        f"{place}; {answer}: {one.user} got the page of {one.page_of}"
        for (place, answer), served in seen.items()
        for one in served or ()
        if place.carrier.name != "nothing"
        and one.page_of != one.user
        and not may_get_the_page_of(one.page_of, place, answer)
    ]


def test_nobody_gets_the_page_of_another_unless_the_application_said_so(seen: Seen) -> None:
    """Fails where any rule of `why_bypass`, `_why_response_is_private` or `Exchange._unkeyed` is left out."""
    assert wrongly_served(seen) == []


@pytest.mark.parametrize(("store", "loop"), HALVES)
def test_nor_where_all_ask_at_once(store: Store, loop: str) -> None:
    """Fails where a flight is shared by requests whose responses have other keys, or may not be stored."""
    seen = anyio.run(observe_at_once, store, backend=loop)
    assert wrongly_served(seen) == []
    shared = {
        place.carrier.name
        for (place, _), served in seen.items()
        if served and len({one.page_of for one in served}) == 1  # they met: one page answered all
    }
    assert {"`X-API-Key`", "a session", "the client's address"} <= shared


def test_what_is_for_one_is_served_to_nobody_a_second_time(seen: Seen) -> None:
    """Not to those whom it was made for either: the application is asked again."""
    again = [
        f"{place}; {answer}"
        for (place, answer), served in seen.items()
        if answer.for_one and any(one.hit for one in served or ())
    ]
    assert again == []


def test_pages_that_no_hit_served_are_the_users_own(seen: Seen) -> None:
    """The corpus itself: fails where it does not tell the application who is asking."""
    for (place, _), served in seen.items():
        for one in served or ():
            assert one.hit or place.carrier.name == "nothing" or one.page_of == one.user


def test_the_corpus_is_whole(seen: Seen) -> None:
    """All users are in it, and every kind of outcome occurs: else nothing above would be shown."""
    assert {user for order in ORDERS for user in order} == set(USERS)
    assert len(seen) == len(PLACES) // 2 * len(ANSWERS)
    assert {outcome_of(served) for served in seen.values()} == {REFUSED, "not stored", "bypass", "one each", SHARED}


# --- the table in the docs -------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table: three patterns, what happens, and why."""

    carriers: set[str]
    sayings: set[str]
    answers: set[str]
    happens: str
    why: str

    def is_for(self, place: Place, answer: Answer) -> bool:
        return all(
            pattern == {"anything"} or not pattern.isdisjoint(labels)
            for pattern, labels in (
                (self.carriers, {place.carrier.name}),
                (self.sayings, {place.saying.name, f'{place.saying.name}, `store="{place.store}"`'}),
                (self.answers, labels_of(place, answer)),
            )
        )


def labels_of(place: Place, answer: Answer) -> set[str]:
    """What the table calls such a response."""
    labels: set[str] = set()
    if answer.for_one:
        labels.add("for one")
    elif answer.for_all:
        labels.add("for all")
    else:
        labels.add("a lifetime" if answer.has_lifetime else "no lifetime")
    if answer.vary == IDENTITY and place.carrier.header is not None:
        labels.add("`Vary` names it")
    if answer.varies_by(place.carrier) == "Cookie":
        labels.add("`Vary: Cookie`")
    return labels


def rows() -> Iterator[Row]:
    """The table of the page. In each cell, `or` stands between what it is about."""
    lines = iter(PAGE.read_text().splitlines())
    for line in lines:
        if line.startswith("| who is asking"):
            break
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        carriers, sayings, answers, happens, why = (cell.strip() for cell in line.strip("|").split("|"))
        yield Row(set(carriers.split(" or ")), set(sayings.split(" or ")), set(answers.split(" or ")), happens, why)


ROWS = list(rows())


def row_for(place: Place, answer: Answer) -> Row:
    """The first row that fits, as the page says to read them."""
    return next(row for row in ROWS if row.is_for(place, answer))


def test_the_table_says_what_happens(seen: Seen) -> None:
    """Every cell of the corpus is in a row of the table, and happens as it says."""
    wrong = [
        f"{place}; {answer}: {outcome_of(served)}, not {row_for(place, answer).happens}"
        for (place, answer), served in seen.items()
        if outcome_of(served) != row_for(place, answer).happens
    ]
    assert wrong == []


def test_every_row_of_the_table_is_about_something() -> None:
    """Fails where a row is misspelt, or stands below one that takes all of its cells."""
    used = {id(row_for(place, answer)) for place in PLACES for answer in ANSWERS}
    assert [row for row in ROWS if id(row) not in used] == []
    assert len(ROWS) > 10


def test_where_the_table_says_shared_it_says_what_to_write_instead() -> None:
    for row in ROWS:
        assert row.why
        if row.happens == SHARED and row.carriers != {"nothing"}:
            assert "you said" in row.why
            assert "Write" in row.why
