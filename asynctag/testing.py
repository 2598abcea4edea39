"""Tools for tests: time that is moved by hand, assertions on what is cached, and the contract that every backend keeps.

In a `conftest.py`:

    from asynctag.testing import fake_clock, memory_backend

In a test:

    with cache.override(memory_backend):
        await product(635)
        await assert_hit(product, 635)
        await assert_tags(product, 635, tags={"product:635"})
        fake_clock.advance(61)
        await assert_miss(product, 635)
"""

from collections.abc import Awaitable, Collection, Iterable
from typing import Any, ClassVar, Protocol

try:
    import pytest
except ImportError as error:
    raise ImportError("asynctag.testing needs pytest: pip install asynctag[testing]") from error

from asynctag.backends.base import Backend, Cause, Entry, Miss, Reading, Stamp, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.codec import NOT_GIVEN, Kept, codec_for
from asynctag.errors import ConfigurationError
from asynctag.explain import Explanation
from asynctag.names import key_name, tag_name

__all__ = ["BackendContract", "FakeClock", "assert_hit", "assert_miss", "assert_tags", "fake_clock", "memory_backend"]

# --- time --------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that stands still until it is moved: `MemoryBackend(clock=FakeClock())`."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"<FakeClock at {self.now:g}>"

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): the clock of a backend never goes back")
        self.now += seconds


@pytest.fixture
def fake_clock() -> FakeClock:
    """The time of `memory_backend`, moved by `fake_clock.advance(seconds)`."""
    return FakeClock()


@pytest.fixture
def memory_backend(fake_clock: FakeClock) -> MemoryBackend:
    """An empty memory backend whose time is `fake_clock`'s: for `with cache.override(memory_backend):`."""
    return MemoryBackend(clock=fake_clock)


# --- assertions on what is cached ----------------------------------------------------------------------


class Explains(Protocol):
    """A cached function, whose arguments follow, or a `Cache`, to which the key is given."""

    def explain(self, *args: Any, **kwargs: Any) -> Awaitable[Explanation]: ...


async def assert_hit(subject: Explains, /, *args: Any, **kwargs: Any) -> Explanation:
    """Assert that a call would be served from the cache, fresh. Changes nothing."""
    __tracebackhide__ = True
    explanation = await subject.explain(*args, **kwargs)
    if not explanation.hit:
        raise AssertionError(f"not a hit. {explanation}")
    return explanation


async def assert_miss(subject: Explains, /, *args: Any, **kwargs: Any) -> Explanation:
    """Assert that a call would compute: there is nothing to serve, not even stale. Changes nothing."""
    __tracebackhide__ = True
    explanation = await subject.explain(*args, **kwargs)
    if explanation.state != "miss":
        raise AssertionError(f"not a miss. {explanation}")
    return explanation


async def assert_tags(subject: Explains, /, *args: Any, tags: Iterable[str], **kwargs: Any) -> Explanation:
    """Assert that an entry is there, and that the tags it carries are `tags`, no more and no less.

    Those of entries that it was built from are among them; the implicit ones (key, function, namespace) are not.
    """
    __tracebackhide__ = True
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r}: give a set of tags, {{{tags!r}}}")
    explanation, wanted = await subject.explain(*args, **kwargs), frozenset(tags)
    if not explanation.names:
        raise AssertionError(f"nothing that could carry tags. {explanation}")
    missing, extra = sorted(wanted - explanation.tags), sorted(explanation.tags - wanted)
    if missing or extra:
        lacks = f"it lacks {', '.join(missing)}" if missing else ""
        has = f"it carries {', '.join(extra)} too" if extra else ""
        raise AssertionError(f"other tags: {' and '.join(filter(None, (lacks, has)))}. {explanation}")
    return explanation


# --- the contract --------------------------------------------------------------------------------------

_CODEC = codec_for(NOT_GIVEN, owner="the contract")

#: The name of an entry in the contract, and of two tags, as they stand in a backend.
PAGE = key_name("", "page")
OTHER = key_name("", "other")
RED = tag_name("", "red")
BLUE = tag_name("", "blue")


class BackendContract:
    """What every backend must do. Subclass it as `Test...`, with a fixture `backend`, and its tests run on yours:

        class TestMine(BackendContract):
            @pytest.fixture
            def backend(self, clock):
                return MyBackend(clock=clock)

    A backend whose time is a server's overrides `advance` (and makes `unit` small), and one whose values are no
    objects of this process may override `entry` and `value_of`. `lose`, `forget` and `other_handle` say how the journal
    gets lost, how it is made to forget, and how a second client is made; where they are not overridden, those tests are
    skipped. For readable failures: `pytest.register_assert_rewrite("asynctag.testing")` in the `conftest.py`.
    """

    pytestmark = pytest.mark.anyio

    #: Seconds that stand for a short while. Entries here live for a few of them.
    unit: ClassVar[float] = 10.0

    @pytest.fixture
    def clock(self) -> Any:
        """What `advance` moves."""
        return FakeClock()

    @pytest.fixture
    def backend(self, clock: Any) -> Any:
        """An empty backend, with a journal of its own."""
        raise NotImplementedError("override the fixture `backend`")

    async def advance(self, backend: Backend, clock: Any, seconds: float) -> None:
        """Let `seconds` pass for the backend."""
        clock.advance(seconds)

    async def lose(self, backend: Backend) -> None:
        """Lose the journal, and leave the entries if the backend can: a flush, a restart, a failover."""
        pytest.skip("lose() is not overridden")

    async def forget(self, backend: Backend) -> None:
        """Make the journal forget every invalidation until now, as pruning does when it is due."""
        pytest.skip("forget() is not overridden")

    async def other_handle(self, backend: Backend) -> Backend:
        """Another client of the same journal and entries."""
        pytest.skip("other_handle() is not overridden")

    def entry(
        self,
        backend: Backend,
        key: str,
        value: Any,
        stamp: Stamp,
        *,
        tags: Collection[str] = (),
        fresh: float = 6,
        stale: float = 0,
        error: float = 0,
    ) -> Entry:
        """An entry that carries its key and `tags`. Its periods are in units: fresh, served stale, kept for errors."""
        kept = _CODEC.keep(value) if backend.in_process else _bytes_of(value)
        fresh_until = backend.clock() + fresh * self.unit
        stale_until = fresh_until + stale * self.unit
        expires = max(stale_until, fresh_until + error * self.unit)
        names = (key, *tags)
        return Entry(
            key, kept.body, kept.thaw, _CODEC, kept.size, names, stamp, fresh_until, fresh_until, stale_until, expires
        )

    def value_of(self, backend: Backend, reading: Reading) -> Any:
        """The value that was read, proven to be there."""
        assert reading.entry is not None, f"a miss: {reading.miss}"
        assert reading.miss is None
        return reading.entry.load() if backend.in_process else _CODEC.decode(reading.entry.body)

    async def put(
        self, backend: Backend, key: str = PAGE, value: Any = "a value", stamp: Stamp | None = None, **more: Any
    ) -> Written:
        """Store a value as one does: with the stamp of a read that came before."""
        if stamp is None:
            stamp = (await backend.read(key)).stamp
        return await backend.write(self.entry(backend, key, value, stamp, **more))

    # --- reading and writing

    async def test_what_was_never_stored_is_absent(self, backend: Backend) -> None:
        """A read finds nothing, says so, and gives the stamp that a computation needs."""
        reading = await backend.read(PAGE)
        assert reading.entry is None
        assert reading.miss == Miss(Cause.ABSENT)
        assert not reading.stale
        assert isinstance(reading.stamp, Stamp)

    async def test_what_was_stored_is_read(self, backend: Backend) -> None:
        """A write is accepted, fresh, and read back with its key, its tags and its stamp."""
        before = await backend.read(PAGE)
        written = await self.put(backend, value={"name": "page", "rows": [1, 2]}, tags=[RED], stamp=before.stamp)
        assert written == Written(True)
        reading = await backend.read(PAGE)
        assert self.value_of(backend, reading) == {"name": "page", "rows": [1, 2]}
        assert not reading.stale
        assert reading.entry is not None
        assert reading.entry.key == PAGE
        assert set(reading.entry.tags) == {PAGE, RED}
        assert reading.entry.stamp == before.stamp

    @pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
    async def test_falsy_values_are_values(self, backend: Backend, value: object) -> None:
        """`None` and whatever else is false are kept and found like any other value."""
        assert (await self.put(backend, value=value)).accepted
        reading = await backend.read(PAGE)
        found = self.value_of(backend, reading)
        assert found == value
        assert type(found) is type(value)

    async def test_keys_are_apart(self, backend: Backend) -> None:
        """Entries under two keys do not meet, however alike the keys are."""
        keys = [PAGE, PAGE + " ", PAGE.upper(), PAGE + "\n", PAGE + "é", PAGE + "\0", key_name("shop", "page")]
        for number, key in enumerate(keys):
            assert (await self.put(backend, key, number)).accepted
        for number, key in enumerate(keys):
            assert self.value_of(backend, await backend.read(key)) == number

    async def test_a_newer_value_replaces(self, backend: Backend) -> None:
        """The second of two writes in order is the one that is read."""
        await self.put(backend, value="first")
        await backend.invalidate([RED])
        assert (await self.put(backend, value="second")).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "second"

    async def test_a_later_write_with_the_same_stamp_replaces(self, backend: Backend) -> None:
        """With nothing invalidated in between, the later write counts."""
        stamp = (await backend.read(PAGE)).stamp
        assert (await self.put(backend, value="first", stamp=stamp)).accepted
        assert (await self.put(backend, value="second", stamp=stamp)).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "second"

    async def test_a_write_with_an_older_stamp_is_superseded(self, backend: Backend) -> None:
        """An entry with a newer stamp stays, though the older one carries no tag that was invalidated."""
        older = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.put(backend, value="newer")
        written = await self.put(backend, value="older", stamp=older)
        assert written == Written(False, miss=Miss(Cause.SUPERSEDED))
        assert self.value_of(backend, await backend.read(PAGE)) == "newer"

    async def test_the_body_is_not_shared(self, backend: Backend) -> None:
        """What a reader does to the value that it got, the next one does not see."""
        await self.put(backend, value={"rows": [1]})
        self.value_of(backend, await backend.read(PAGE))["rows"].append(2)
        assert self.value_of(backend, await backend.read(PAGE)) == {"rows": [1]}

    async def test_peek_finds_nothing_that_read_would_not(self, backend: Backend) -> None:
        """What `peek` tells at once is what a read says; it may always tell nothing."""
        await self.put(backend, tags=[RED])
        peeked = backend.peek(PAGE)
        assert peeked is None or peeked.key == PAGE
        await backend.invalidate([RED])
        assert backend.peek(PAGE) is None
        await self.put(backend, tags=[RED], error=1)
        await backend.invalidate([RED], soft=True)
        assert backend.peek(PAGE) is None
        assert backend.peek(OTHER) is None

    # --- stamps and invalidation

    async def test_an_invalidation_takes_a_number(self, backend: Backend) -> None:
        """The stamps of reads around an invalidation differ, in one epoch; those with none between are equal."""
        first, again = (await backend.read(PAGE)).stamp, (await backend.read(OTHER)).stamp
        assert first == again
        await backend.invalidate([RED])
        after = (await backend.read(PAGE)).stamp
        assert after.epoch == first.epoch
        assert after.seq > first.seq

    async def test_each_tag_invalidates(self, backend: Backend) -> None:
        """An entry is gone once any one of its tags is invalidated, and the tag behind it is named."""
        for tag in (RED, BLUE, PAGE):
            assert (await self.put(backend, tags=[RED, BLUE])).accepted
            await backend.invalidate([tag])
            reading = await backend.read(PAGE)
            assert reading.entry is None
            assert reading.miss is not None
            assert reading.miss.cause in (Cause.INVALIDATED, Cause.ABSENT)
            if reading.miss.cause is Cause.INVALIDATED:
                assert reading.miss.tag == tag

    async def test_all_tags_of_one_invalidation_count(self, backend: Backend) -> None:
        """Several tags at once: entries of each are gone, an entry of none stays."""
        await self.put(backend, key_name("", "r"), tags=[RED])
        await self.put(backend, key_name("", "b"), tags=[BLUE])
        await self.put(backend, OTHER, "stays")
        await backend.invalidate(iter([RED, BLUE]))
        assert (await backend.read(key_name("", "r"))).entry is None
        assert (await backend.read(key_name("", "b"))).entry is None
        assert self.value_of(backend, await backend.read(OTHER)) == "stays"

    async def test_tags_match_exactly(self, backend: Backend) -> None:
        """No prefix, pattern, case or whitespace: only the very same tag invalidates."""
        tags = [tag_name("", one) for one in ("a:1", "a:10", "A:1", "a:1 ", "a", "*", "a:é", "a:\n", "-inf", "1")]
        for tag in tags:
            await self.put(backend, key_name("", tag), tags=[tag])
        await backend.invalidate([tags[0], tag_name("", "a:*"), tag_name("", "[a]"), tag_name("shop", "a")])
        assert (await backend.read(key_name("", tags[0]))).entry is None
        for tag in tags[1:]:
            assert self.value_of(backend, await backend.read(key_name("", tag))) == "a value"

    async def test_many_tags(self, backend: Backend) -> None:
        """Thousands of tags on an entry, and thousands in one invalidation, are nothing special."""
        tags = [tag_name("", f"row:{number}") for number in range(5_000)]
        assert (await self.put(backend, tags=tags)).accepted
        await backend.invalidate([tag_name("", f"other:{number}") for number in range(5_000)])
        assert (await backend.read(PAGE)).entry is not None
        await backend.invalidate([tags[-1]])
        assert (await backend.read(PAGE)).entry is None

    async def test_a_write_is_refused_if_its_tag_was_invalidated_meanwhile(self, backend: Backend) -> None:
        """The stamp is from before the computation: an invalidation during it counts, and the tag is named."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        written = await self.put(backend, tags=[BLUE, RED], stamp=stamp)
        assert written == Written(False, miss=Miss(Cause.INVALIDATED, RED))
        assert (await backend.read(PAGE)).entry is None

    async def test_tags_need_not_be_known_in_advance(self, backend: Backend) -> None:
        """A tag never heard of before, invalidated before anybody named it to the backend, refuses a write too."""
        stamp = (await backend.read(PAGE)).stamp
        late = tag_name("", "late")
        await backend.invalidate([late])
        assert not (await self.put(backend, tags=[late], stamp=stamp)).accepted
        assert (await self.put(backend, tags=[BLUE], stamp=stamp)).accepted

    async def test_an_invalidation_before_the_stamp_does_not_count(self, backend: Backend) -> None:
        """Data read after an invalidation is stored, and stays."""
        await backend.invalidate([RED, PAGE])
        assert (await self.put(backend, tags=[RED])).accepted
        assert (await backend.read(PAGE)).entry is not None

    async def test_a_refused_write_leaves_what_is_there(self, backend: Backend) -> None:
        """A valid entry is not lost to a write that is refused."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.put(backend, value="stays", tags=[BLUE])
        assert not (await self.put(backend, value="old", tags=[RED], stamp=stamp)).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "stays"

    # --- soft invalidation and stale periods

    async def test_a_soft_invalidation_makes_stale(self, backend: Backend) -> None:
        """An entry with a stale period is still there, and is stale."""
        for stale, error in ((2, 0), (0, 2)):
            await self.put(backend, value="old", tags=[RED], stale=stale, error=error)
            await backend.invalidate([RED], soft=True)
            reading = await backend.read(PAGE)
            assert self.value_of(backend, reading) == "old"
            assert reading.stale

    async def test_without_a_stale_period_soft_is_hard(self, backend: Backend) -> None:
        """There is no period in which it may be served: the entry is gone."""
        await self.put(backend, tags=[RED])
        await backend.invalidate([RED], soft=True)
        reading = await backend.read(PAGE)
        assert reading.entry is None
        assert reading.miss is not None
        assert reading.miss.cause in (Cause.INVALIDATED, Cause.ABSENT)

    @pytest.mark.parametrize("order", [(True, False), (False, True), (True, False, True)])
    async def test_hard_and_soft_are_kept_apart(self, backend: Backend, order: tuple[bool, ...]) -> None:
        """In whatever order they come, what a hard invalidation hit is never served: a soft one does not lift it."""
        await self.put(backend, tags=[RED], stale=3, error=3)
        for soft in order:
            await backend.invalidate([RED], soft=soft)
        assert (await backend.read(PAGE)).entry is None

    async def test_soft_and_hard_of_two_tags(self, backend: Backend) -> None:
        """Softened by one tag and hit hard by another, an entry is gone."""
        await self.put(backend, tags=[RED, BLUE], stale=3)
        await backend.invalidate([RED], soft=True)
        assert (await backend.read(PAGE)).stale
        await backend.invalidate([BLUE])
        assert (await backend.read(PAGE)).entry is None

    async def test_a_write_softened_meanwhile_is_stored_stale(self, backend: Backend) -> None:
        """The reply says that it was stored stale; without a stale period it is refused."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED], soft=True)
        assert await self.put(backend, tags=[RED], stamp=stamp, stale=2) == Written(True, stale=True)
        assert (await backend.read(PAGE)).stale
        refused = await self.put(backend, OTHER, tags=[RED], stamp=stamp)
        assert refused == Written(False, miss=Miss(Cause.INVALIDATED, RED))

    async def test_a_hard_invalidation_meanwhile_refuses_whatever_the_stale_period(self, backend: Backend) -> None:
        """A stale period excuses nothing that a hard invalidation hit."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await backend.invalidate([RED], soft=True)
        assert not (await self.put(backend, tags=[RED], stamp=stamp, stale=2)).accepted

    async def test_a_renewed_entry_is_fresh(self, backend: Backend) -> None:
        """What is computed after a soft invalidation replaces the stale entry, and is fresh."""
        await self.put(backend, value="old", tags=[RED], stale=2)
        await backend.invalidate([RED], soft=True)
        assert await self.put(backend, value="new", tags=[RED], stale=2) == Written(True)
        reading = await backend.read(PAGE)
        assert self.value_of(backend, reading) == "new"
        assert not reading.stale

    # --- leases

    async def test_a_leased_tag_makes_entries_invalid(self, backend: Backend) -> None:
        """For everybody, at once; the tag is named, and other entries stay."""
        await self.put(backend, tags=[RED])
        await self.put(backend, OTHER, "stays", tags=[BLUE])
        await backend.lease(iter([RED]), "me", 10 * self.unit)
        assert backend.peek(PAGE) is None
        assert (await backend.read(PAGE)).entry is None
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.LEASED, RED)
        assert self.value_of(backend, await backend.read(OTHER)) == "stays"

    async def test_a_write_with_a_leased_tag_is_refused(self, backend: Backend) -> None:
        """Whether its stamp is from before the lease or from after it, and whatever else is invalidated."""
        before = (await backend.read(PAGE)).stamp
        await backend.lease([RED], "me", 10 * self.unit)
        during = (await backend.read(PAGE)).stamp
        assert during > before
        for stamp in (before, during):
            refused = await self.put(backend, tags=[BLUE, RED], stamp=stamp, stale=3)
            assert refused == Written(False, miss=Miss(Cause.LEASED, RED))
        await backend.invalidate([RED])
        assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)

    async def test_a_release_invalidates(self, backend: Backend) -> None:
        """What was computed while the tag was held is not stored; what is computed afterwards is."""
        await self.put(backend, tags=[RED])
        await backend.lease([RED], "me", 10 * self.unit)
        during = (await backend.read(PAGE)).stamp
        await backend.release(iter([RED]), "me")
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, RED)
        assert (await self.put(backend, tags=[RED], stamp=during)).miss == Miss(Cause.INVALIDATED, RED)
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_release_invalidates_what_is_no_longer_held(self, backend: Backend) -> None:
        """Nor was ever: the end of a transaction counts whatever became of its lease."""
        await self.put(backend, tags=[RED])
        stamp = (await backend.read(PAGE)).stamp
        await backend.release([RED], "me")
        assert (await backend.read(PAGE)).entry is None
        assert not (await self.put(backend, tags=[RED], stamp=stamp)).accepted

    async def test_each_holder_holds(self, backend: Backend) -> None:
        """One holder's release leaves the others'."""
        await backend.lease([RED, BLUE], "a", 10 * self.unit)
        await backend.lease([RED], "b", 10 * self.unit)
        await backend.release([RED, BLUE], "a")
        assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
        assert (await self.put(backend, OTHER, tags=[BLUE])).accepted
        await backend.release([RED], "b")
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lease_that_goes_on_says_so(self, backend: Backend) -> None:
        """The first time, and of any tag for the first time, it says that it was not held."""
        assert await backend.lease([RED], "me", 10 * self.unit) is False
        assert await backend.lease([RED], "me", 10 * self.unit) is True
        assert await backend.lease([RED, BLUE], "me", 10 * self.unit) is False
        assert await backend.lease([RED], "another", 10 * self.unit) is False

    async def test_a_lease_that_has_ended_counts_until_somebody_writes(self, backend: Backend, clock: Any) -> None:
        """For readers it is a lease; the first who stores makes an invalidation of it, the next one's store counts."""
        await self.put(backend, tags=[RED])
        await backend.lease([RED], "me", self.unit)
        during = (await backend.read(PAGE)).stamp
        await self.advance(backend, clock, 2 * self.unit)
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.LEASED, RED)
        assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, RED)
        assert not (await self.put(backend, tags=[RED], stamp=during)).accepted
        assert (await self.put(backend, tags=[RED])).accepted
        await backend.release([RED], "me")
        assert (await backend.read(PAGE)).entry is None

    async def test_a_lease_that_has_ended_is_settled_by_invalidations_of_others(
        self, backend: Backend, clock: Any
    ) -> None:
        """So that nothing is left for ever of a holder that died."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.lease([RED], "me", self.unit)
        await self.advance(backend, clock, 2 * self.unit)
        await backend.invalidate([BLUE])
        assert (await self.put(backend, tags=[RED], stamp=stamp)).miss == Miss(Cause.INVALIDATED, RED)
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lease_is_renewed(self, backend: Backend, clock: Any) -> None:
        """It ends as late as it was asked for last, and no sooner than it would have."""
        await backend.lease([RED], "me", 2 * self.unit)
        await backend.lease([RED], "me", 6 * self.unit)
        await backend.lease([RED], "me", self.unit)
        await self.advance(backend, clock, 3 * self.unit)
        for _ in range(2):
            assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)

    async def test_one_holders_end_leaves_the_others(self, backend: Backend, clock: Any) -> None:
        """A holder that died lets go of nothing that another holds."""
        await backend.lease([RED], "dead", self.unit)
        await backend.lease([RED], "alive", 6 * self.unit)
        await self.advance(backend, clock, 2 * self.unit)
        for _ in range(2):
            assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
        await backend.release([RED], "alive")
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lag_holds_tags_past_the_release(self, backend: Backend, clock: Any) -> None:
        """Nothing that carries them is stored until it has ended; then what was computed meanwhile is refused."""
        await self.put(backend, tags=[RED])
        await backend.lease([RED], "me", 10 * self.unit)
        await backend.release([RED], "me", lag=3 * self.unit)
        assert (await backend.read(PAGE)).entry is None
        during = (await backend.read(PAGE)).stamp
        assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
        await self.advance(backend, clock, 4 * self.unit)
        for _ in range(2):
            assert not (await self.put(backend, tags=[RED], stamp=during)).accepted
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lag_may_end_sooner(self, backend: Backend) -> None:
        """Released again, without a lag, tags are let go of and invalidated."""
        await backend.release([RED], "me", lag=10 * self.unit)
        during = (await backend.read(PAGE)).stamp
        await backend.release([RED], "me")
        assert (await self.put(backend, tags=[RED], stamp=during)).miss == Miss(Cause.INVALIDATED, RED)
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_each_lag_has_an_end_of_its_own(self, backend: Backend, clock: Any) -> None:
        """A short one does not end a long one, nor a long one's transaction another's lease."""
        await backend.release([RED], "long", lag=8 * self.unit)
        await backend.release([RED], "short", lag=self.unit)
        await self.advance(backend, clock, 2 * self.unit)
        for _ in range(2):
            assert (await self.put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
        await backend.release([RED], "long")
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lag_that_is_served_lets_entries_be_stored(self, backend: Backend, clock: Any) -> None:
        """Until its end, and no longer: they go then, and what was computed meanwhile is refused."""
        await self.put(backend, value="old", tags=[RED])
        await backend.lease([RED], "me", 10 * self.unit)
        await backend.release([RED], "me", lag=3 * self.unit, serve=True)
        assert (await backend.read(PAGE)).entry is None
        during = (await backend.read(PAGE)).stamp
        assert (await self.put(backend, value="from a replica", tags=[RED], fresh=8, stale=8)).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "from a replica"
        await self.put(backend, OTHER, "stays", tags=[BLUE], fresh=12)
        await self.advance(backend, clock, 4 * self.unit)
        assert backend.peek(PAGE) is None
        assert (await backend.read(PAGE)).entry is None
        assert self.value_of(backend, await backend.read(OTHER)) == "stays"
        assert not (await self.put(backend, tags=[RED], stamp=during)).accepted
        assert (await self.put(backend, tags=[RED])).accepted

    async def test_a_lag_that_is_served_may_end_sooner(self, backend: Backend, clock: Any) -> None:
        """Released again, tags are invalidated once more, and what is stored from then on lives as it should."""
        await backend.release([RED], "me", lag=3 * self.unit, serve=True)
        await self.put(backend, value="from a replica", tags=[RED])
        during = (await backend.read(PAGE)).stamp
        await backend.release([RED], "me")
        assert (await backend.read(PAGE)).entry is None
        assert not (await self.put(backend, tags=[RED], stamp=during)).accepted
        assert (await self.put(backend, tags=[RED], fresh=20)).accepted
        await self.advance(backend, clock, 4 * self.unit)
        assert (await backend.read(PAGE)).entry is not None

    async def test_each_lag_that_is_served_invalidates(self, backend: Backend, clock: Any) -> None:
        """The end of the first of two counts, though the second goes on."""
        await backend.release([RED], "long", lag=8 * self.unit, serve=True)
        await backend.release([RED], "short", lag=2 * self.unit, serve=True)
        await self.put(backend, tags=[RED])
        during = (await backend.read(PAGE)).stamp
        await self.advance(backend, clock, 3 * self.unit)
        assert (await backend.read(PAGE)).entry is None
        assert not (await self.put(backend, tags=[RED], stamp=during)).accepted
        assert (await self.put(backend, tags=[RED], fresh=20)).accepted
        assert (await backend.read(PAGE)).entry is not None
        await self.advance(backend, clock, 6 * self.unit)
        assert (await backend.read(PAGE)).entry is None

    async def held(self, backend: Backend, key: str = PAGE) -> bool:
        """Whether an entry may be served as from before a lease. A backend that cannot tell says no to everything."""
        (reading,) = await backend.read_held([key])
        return reading.entry is not None

    async def test_what_is_held_may_be_read_as_from_before(self, backend: Backend) -> None:
        """With its staleness; many at once, in their order. For others it stays a miss."""
        can = type(backend).read_held is not Backend.read_held
        await self.put(backend, value="before", tags=[RED])
        await self.put(backend, OTHER, "stale", tags=[RED, BLUE], stale=3)
        await backend.invalidate([BLUE], soft=True)
        stamp = (await backend.read(PAGE)).stamp
        await backend.lease([RED], "me", 10 * self.unit)
        await backend.lease([RED, BLUE], "another", 10 * self.unit)
        other, page, none = await backend.read_held([OTHER, PAGE, key_name("", "none")])
        assert none.entry is None
        assert await backend.is_held(RED, stamp) is can
        assert not await backend.is_held(tag_name("", "green"), stamp)
        assert not await backend.is_held(RED, Stamp(stamp.epoch + 1, stamp.seq))
        assert (await backend.read(PAGE)).entry is None
        if can:
            assert self.value_of(backend, page) == "before"
            assert self.value_of(backend, other) == "stale"
            assert (page.stale, other.stale) == (False, True)

    @pytest.mark.parametrize("what", ["release", "lag", "invalidate", "delete"])
    async def test_what_was_invalidated_while_it_is_held_is_not_from_before(self, backend: Backend, what: str) -> None:
        """One holder ends and another goes on, or somebody invalidates: what was there is from before that."""
        can = type(backend).read_held is not Backend.read_held
        tag = PAGE if what == "delete" else RED
        await self.put(backend, tags=[RED])
        stamp = (await backend.read(PAGE)).stamp
        await backend.lease([tag], "a", 10 * self.unit)
        await backend.lease([tag], "b", 10 * self.unit)
        assert await self.held(backend) is can
        if what == "invalidate":
            await backend.invalidate([BLUE, RED])
        elif what == "delete":
            await backend.delete(PAGE)
        else:
            await backend.release([RED], "a", lag=5 * self.unit * (what == "lag"))
        assert not await self.held(backend)
        assert not await backend.is_held(tag, stamp)
        assert await backend.is_held(tag, (await backend.read(PAGE)).stamp) is can
        await backend.lease([tag], "c", 10 * self.unit)
        assert not await self.held(backend)

    async def test_what_a_dead_holder_may_have_changed_is_not_served(self, backend: Backend, clock: Any) -> None:
        """From the end of its lease on, whoever else holds the tag, and whether or not that end was seen to."""
        can = type(backend).read_held is not Backend.read_held
        await self.put(backend, tags=[RED], fresh=8)
        stamp = (await backend.read(PAGE)).stamp
        await backend.lease([RED], "dead", self.unit)
        await backend.lease([RED], "alive", 6 * self.unit)
        assert await self.held(backend) is can
        await self.advance(backend, clock, 2 * self.unit)
        assert not await self.held(backend)
        assert not await backend.is_held(RED, stamp)
        await self.put(backend, tags=[RED])
        assert not await self.held(backend)
        assert not await backend.is_held(RED, stamp)

    async def test_what_is_not_valid_is_not_served_as_from_before_either(self, backend: Backend, clock: Any) -> None:
        """Neither what was invalidated before the lease, nor what has expired."""
        await self.put(backend, tags=[RED])
        await self.put(backend, OTHER, tags=[BLUE])
        await backend.invalidate([RED])
        await backend.lease([RED, BLUE], "me", 20 * self.unit)
        assert not await self.held(backend)
        await self.advance(backend, clock, 6 * self.unit)
        assert not await self.held(backend, OTHER)

    async def test_a_lost_journal_holds_nothing_from_before(self, backend: Backend) -> None:
        """What is there may be older than what it knew."""
        await self.put(backend, tags=[RED])
        await backend.lease([RED], "me", 10 * self.unit)
        stamp = (await backend.read(PAGE)).stamp
        await self.lose(backend)
        await backend.lease([RED], "me", 10 * self.unit)
        assert not await self.held(backend)
        assert not await backend.is_held(RED, stamp)

    async def test_the_newest_stamp_is_none_that_is_yet_to_come(self, backend: Backend) -> None:
        """Known without asking, it may be older than the journal's; never newer, nor of what was not seen."""
        await backend.invalidate([RED])
        known, asked = backend.newest(), (await backend.read(PAGE)).stamp
        assert known <= asked
        if known.epoch == asked.epoch:
            await backend.invalidate([RED])
            assert not (await self.put(backend, tags=[RED], stamp=known)).accepted

    async def test_what_has_changed_is_never_said_to_be_unchanged(self, backend: Backend, clock: Any) -> None:
        """By a hard or a soft invalidation, a deletion, a lease. Of what has not, a backend may say that it does."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([BLUE])
        asked = await backend.unchanged([PAGE, RED], stamp)
        assert asked is True or asked is False
        assert not await backend.unchanged([RED, BLUE], stamp)
        after = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED], soft=True)
        assert not await backend.unchanged([PAGE, RED], after)
        await backend.delete(PAGE)
        assert not await backend.unchanged([PAGE], after)
        after = (await backend.read(PAGE)).stamp
        await backend.lease([RED], "me", self.unit)
        assert not await backend.unchanged([RED], after)
        assert not await backend.unchanged([RED], (await backend.read(PAGE)).stamp)
        assert not await backend.unchanged([BLUE], Stamp(after.epoch + 1, after.seq))

    async def test_what_was_forgotten_is_not_said_to_be_unchanged(self, backend: Backend) -> None:
        """The journal cannot know."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.forget(backend)
        assert not await backend.unchanged([RED], stamp)
        assert not await backend.unchanged([BLUE], stamp)

    # --- time

    async def test_entries_expire(self, backend: Backend, clock: Any) -> None:
        """At its end an entry is gone, and not before."""
        await self.put(backend, fresh=6)
        await self.advance(backend, clock, 3 * self.unit)
        assert (await backend.read(PAGE)).entry is not None
        await self.advance(backend, clock, 3 * self.unit)
        reading = await backend.read(PAGE)
        assert reading.entry is None
        assert reading.miss is not None
        assert reading.miss.cause in (Cause.EXPIRED, Cause.ABSENT)
        assert backend.peek(PAGE) is None

    async def test_stale_periods_come_after_freshness(self, backend: Backend, clock: Any) -> None:
        """Fresh, then stale, then gone; the times are in the entry."""
        await self.put(backend, fresh=3, stale=3, error=6)
        fresh = await backend.read(PAGE)
        assert not fresh.stale
        assert fresh.entry is not None
        assert fresh.entry.fresh_until < fresh.entry.stale_until < fresh.entry.expires
        await self.advance(backend, clock, 4 * self.unit)
        stale = await backend.read(PAGE)
        assert stale.stale
        assert stale.entry is not None
        assert stale.entry.fresh_until <= backend.clock() < stale.entry.stale_until
        assert backend.peek(PAGE) is None
        await self.advance(backend, clock, 3 * self.unit)
        kept = await backend.read(PAGE)
        assert kept.stale
        assert kept.entry is not None
        assert kept.entry.stale_until <= backend.clock() < kept.entry.expires
        await self.advance(backend, clock, 3 * self.unit)
        assert (await backend.read(PAGE)).entry is None

    async def test_a_write_that_has_expired_is_refused(self, backend: Backend) -> None:
        """An entry whose end has come is not stored."""
        written = await self.put(backend, fresh=-1)
        assert written == Written(False, miss=Miss(Cause.EXPIRED))
        assert (await backend.read(PAGE)).entry is None

    async def test_a_write_past_its_freshness_is_stored_stale(self, backend: Backend) -> None:
        """What was built from something stale is stale as it is stored, and the reply says so."""
        assert await self.put(backend, fresh=-1, stale=3) == Written(True, stale=True)
        assert (await backend.read(PAGE)).stale

    async def test_an_expired_entry_supersedes_nothing(self, backend: Backend, clock: Any) -> None:
        """Once it has expired, an entry with a newer stamp is no reason to refuse."""
        older = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.put(backend, value="newer", fresh=1)
        await self.advance(backend, clock, 2 * self.unit)
        assert (await self.put(backend, value="older", stamp=older)).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "older"

    async def test_an_invalidation_outlives_the_passing_of_time(self, backend: Backend, clock: Any) -> None:
        """However long a computation takes, an invalidation during it is not forgotten."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.advance(backend, clock, 8 * self.unit)
        assert not (await self.put(backend, tags=[RED], stamp=stamp)).accepted

    # --- delete

    async def test_delete_removes(self, backend: Backend) -> None:
        """The entry is gone; the answer says whether one was there."""
        assert await backend.delete(PAGE) is False
        await self.put(backend)
        assert await backend.delete(PAGE) is True
        assert (await backend.read(PAGE)).entry is None
        assert await backend.delete(PAGE) is False
        assert (await self.put(backend, value="new")).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "new"

    async def test_delete_refuses_what_began_before_it(self, backend: Backend) -> None:
        """A computation that was under way does not bring the entry back."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.delete(PAGE)
        written = await self.put(backend, stamp=stamp)
        assert written == Written(False, miss=Miss(Cause.INVALIDATED, PAGE))
        assert (await backend.read(PAGE)).entry is None

    async def test_delete_invalidates_what_was_built_from_it(self, backend: Backend) -> None:
        """The key is a tag, which entries that were built from it carry."""
        await self.put(backend)
        await self.put(backend, OTHER, tags=[PAGE], stale=3)
        await backend.delete(PAGE)
        assert (await backend.read(OTHER)).entry is None

    async def test_delete_leaves_the_others(self, backend: Backend) -> None:
        """Nothing else goes."""
        await self.put(backend)
        await self.put(backend, OTHER, "stays", tags=[RED])
        await backend.delete(PAGE)
        assert self.value_of(backend, await backend.read(OTHER)) == "stays"

    # --- many at once

    async def test_read_many_is_as_read(self, backend: Backend, clock: Any) -> None:
        """A reading for each key, in order: a hit, a miss, a stale one, an invalid one, and one key twice."""
        names = [key_name("", name) for name in ("hit", "absent", "stale", "invalid")]
        await self.put(backend, names[0], None)
        await self.put(backend, names[2], "old", tags=[BLUE], stale=3)
        await self.put(backend, names[3], tags=[RED])
        await backend.invalidate([BLUE], soft=True)
        await backend.invalidate([RED])
        hit, absent, stale, invalid, again = await backend.read_many([*names, names[0]])
        assert self.value_of(backend, hit) is None
        assert self.value_of(backend, again) is None
        assert absent.miss == Miss(Cause.ABSENT)
        assert stale.stale
        assert invalid.entry is None
        stamp = (await backend.read(PAGE)).stamp
        assert all(one.stamp == stamp for one in (hit, absent, stale, invalid, again))
        assert list(await backend.read_many([])) == []

    async def test_write_many_is_as_write(self, backend: Backend) -> None:
        """An answer for each entry, in order; one that is refused does not hold back the others."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        first = self.entry(backend, PAGE, "first", stamp)
        second = self.entry(backend, OTHER, "second", stamp, tags=[RED])
        third = self.entry(backend, key_name("", "third"), None, stamp, tags=[BLUE])
        assert await backend.write_many([first, second, third]) == [
            Written(True),
            Written(False, miss=Miss(Cause.INVALIDATED, RED)),
            Written(True),
        ]
        assert self.value_of(backend, await backend.read(PAGE)) == "first"
        assert (await backend.read(OTHER)).entry is None
        assert list(await backend.write_many([])) == []

    async def test_what_is_added_at_once_is_there_or_nothing_is(self, backend: Backend) -> None:
        """All of it, or none: not where something stands under a key, or a tag was invalidated since."""
        stamp = (await backend.read(PAGE)).stamp
        keys = [PAGE, PAGE + " 2"]
        added = backend.add([self.entry(backend, key, "value", stamp, tags=[RED]) for key in keys])
        for key in keys:
            reading = await backend.read(key)
            assert (reading.entry is not None) == added
            if added:
                assert (self.value_of(backend, reading), reading.stale) == ("value", False)
                assert not backend.why_absent(key)
        third = PAGE + " 3"
        assert (await self.put(backend, key=PAGE, stamp=stamp)).accepted or not added
        assert not backend.add([self.entry(backend, key, "other", stamp) for key in (third, PAGE)])
        await backend.invalidate([RED])
        assert not backend.add([self.entry(backend, third, "old", stamp, tags=[RED])])
        assert (await backend.read(third)).entry is None

    # --- inspect

    async def test_inspect_says_what_read_says(self, backend: Backend, clock: Any) -> None:
        """Absent, a hit, stale: as read, with the entry."""
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.ABSENT)
        assert (await backend.inspect(PAGE)).entry is None
        await self.put(backend, fresh=3, stale=3, tags=[RED])
        found = await backend.inspect(PAGE)
        assert self.value_of(backend, found) == "a value"
        assert not found.stale
        assert found.stamp == (await backend.read(PAGE)).stamp
        await self.advance(backend, clock, 4 * self.unit)
        assert (await backend.inspect(PAGE)).stale

    async def test_inspect_names_the_tag(self, backend: Backend) -> None:
        """Of what was invalidated it says by which tag, hard or soft."""
        await self.put(backend, tags=[RED, BLUE])
        await backend.invalidate([BLUE])
        assert (await backend.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, BLUE)
        await self.put(backend, OTHER, tags=[RED])
        await backend.invalidate([RED], soft=True)
        assert (await backend.inspect(OTHER)).miss == Miss(Cause.INVALIDATED, RED)

    # --- what the journal forgets, or loses

    async def test_forgetting_costs_misses_never_staleness(self, backend: Backend) -> None:
        """Once an invalidation is forgotten, nothing from before it is served or stored, whatever its tags."""
        stamp = (await backend.read(PAGE)).stamp
        await self.put(backend, value="old", tags=[RED], stale=3)
        await backend.invalidate([RED])
        await self.forget(backend)
        assert (await backend.read(PAGE)).entry is None
        assert not (await self.put(backend, OTHER, "old", tags=[RED], stamp=stamp)).accepted
        assert (await backend.read(OTHER)).entry is None

    async def test_what_was_pruned_says_so(self, backend: Backend) -> None:
        """A write that is older than what the journal remembers is refused as such, and a new one is accepted."""
        stamp = (await backend.read(PAGE)).stamp
        await backend.invalidate([RED])
        await self.forget(backend)
        written = await self.put(backend, OTHER, stamp=stamp)
        assert not written.accepted
        assert written.miss is not None
        assert written.miss.cause is Cause.PRUNED
        assert (await self.put(backend, value="new", tags=[RED])).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "new"

    async def test_a_lost_journal_makes_everything_a_miss(self, backend: Backend) -> None:
        """A new epoch: no entry from before is served, and nothing computed before is stored."""
        before = (await backend.read(PAGE)).stamp
        await self.put(backend, value="old", tags=[RED], stale=3, error=3)
        await self.lose(backend)
        reading = await backend.read(PAGE)
        assert reading.entry is None
        assert reading.stamp.epoch != before.epoch
        assert backend.peek(PAGE) is None
        written = await self.put(backend, OTHER, "old", stamp=before)
        assert written == Written(False, miss=Miss(Cause.LOST))
        assert (await self.put(backend, value="new", tags=[RED])).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "new"

    # --- agreement, several handles

    async def test_agree_refuses_another_max_ttl(self, backend: Backend) -> None:
        """The first word counts; the same is welcome, another raises."""
        await backend.agree(100.0)
        await backend.agree(100.0)
        with pytest.raises(ConfigurationError, match="max_ttl"):
            await backend.agree(200.0)
        await backend.agree(100.0)

    async def test_two_handles_share_one_journal(self, backend: Backend) -> None:
        """What one client stores and invalidates, another sees at once."""
        other = await self.other_handle(backend)
        try:
            assert (await self.put(backend, value="shared", tags=[RED])).accepted
            assert self.value_of(other, await other.read(PAGE)) == "shared"
            stamp = (await other.read(OTHER)).stamp
            await backend.invalidate([RED])
            assert other.peek(PAGE) is None
            assert (await other.read(PAGE)).entry is None
            assert not (await self.put(other, OTHER, tags=[RED], stamp=stamp)).accepted
            await self.put(other, OTHER, "theirs")
            assert self.value_of(backend, await backend.read(OTHER)) == "theirs"
            await other.delete(OTHER)
            assert (await backend.read(OTHER)).entry is None
        finally:
            await other.aclose()

    async def test_a_closed_backend_may_be_used_again(self, backend: Backend) -> None:
        """`aclose` gives back connections; it is no end, and may be called twice."""
        await backend.aclose()
        await backend.aclose()
        assert (await self.put(backend, value="again")).accepted
        assert self.value_of(backend, await backend.read(PAGE)) == "again"


def _bytes_of(value: Any) -> Kept:
    data = _CODEC.encode(value)
    return Kept(data, _CODEC.decode, len(data))
