"""The memory backend: what it evicts, what it counts, what it forgets. (What every backend does: `test_contract`.)"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from sys import getsizeof
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctag import Cause, ConfigurationError
from asynctag.backends.base import Entry, Stamp
from asynctag.backends.memory import ENTRY_OVERHEAD, MemoryBackend
from asynctag.testing import FakeClock

pytestmark = pytest.mark.anyio


async def put(
    backend: MemoryBackend,
    key: str,
    *,
    size: int = 10,
    tags: tuple[str, ...] = (),
    ttl: float = 100,
    stale: float = 0,
    stamp: Stamp | None = None,
) -> bool:
    now = backend.clock()
    stamp = (await backend.read(key)).stamp if stamp is None else stamp
    ends = now + ttl, now + ttl, now + ttl + stale, now + ttl + stale
    return (await backend.write(Entry(key, "x", None, None, size, (key, *tags), stamp, *ends))).accepted


def cost(key: str, tags: int = 1, size: int = 10) -> int:
    """Of an entry that carries its key and, beyond it, tags of one letter."""
    return size + getsizeof(key) + getsizeof(("",) * tags) + len(key) + tags - 1 + ENTRY_OVERHEAD


def chain(backend: MemoryBackend) -> Iterator[Any]:
    """The queue from the oldest to the newest, both links checked."""
    node, before = backend._oldest, None
    while node is not None:
        assert node.older is before
        yield node
        node, before = node.newer, node
    assert backend._newest is before


def check(backend: MemoryBackend) -> None:
    """What holds between two calls, whatever they are."""
    nodes = list(chain(backend))
    assert {node.key: node for node in nodes} == backend._entries
    assert len(nodes) == len(backend) <= backend._max_entries
    assert backend.size == sum(node.size for node in nodes) <= backend._max_bytes
    assert len(backend._hard) + len(backend._soft) <= backend._max_tags
    for hand in (backend._hand, backend._sweep_at):
        assert hand is None or any(hand is node for node in nodes)
    for journal in (backend._hard, backend._soft):
        numbers = list(journal.values())
        assert numbers == sorted(numbers)
        assert all(number <= backend._stamp.seq for number in numbers)
    assert backend._floor <= backend._stamp.seq


# --- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_entries", "max_bytes", "max_tags"])
@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None, "10"])
async def test_bad_limits_are_refused(name: str, limit: Any) -> None:
    """Naming the limit."""
    with pytest.raises(ConfigurationError, match=f"{name}="):
        MemoryBackend(**{name: limit})


async def test_bounded_by_entries() -> None:
    """One more than fits drives one out."""
    backend = MemoryBackend(max_entries=10)
    for number in range(25):
        assert await put(backend, f"k{number}")
        check(backend)
    assert len(backend) == 10
    backend = MemoryBackend(max_entries=1)
    for number in range(3):
        assert await put(backend, f"k{number}")
        check(backend)
    assert len(backend) == 1


async def test_bounded_by_bytes() -> None:
    """Large ones drive out as many as it takes; what could never fit is refused and drives out nothing."""
    backend = MemoryBackend(max_bytes=10 * cost("k0"))
    for number in range(10):
        assert await put(backend, f"k{number}")
    assert len(backend) == 10
    assert await put(backend, "l1", size=10 + 4 * cost("k0"))
    check(backend)
    assert len(backend) == 6
    reading = await backend.read("x")
    now = backend.clock() + 100
    huge = Entry("h", "x", None, None, 10 * cost("k0"), ("h",), reading.stamp, now, now, now, now)
    written = await backend.write(huge)
    assert written.miss is not None
    assert written.miss.cause is Cause.TOO_LARGE
    assert len(backend) == 6


async def test_sizes_are_counted() -> None:
    """Body, key, list of tags and an overhead; given back by replacing, deleting, wiping."""
    backend = MemoryBackend()
    await put(backend, "a")
    await put(backend, "b", tags=("x", "y"), size=1_000)
    assert backend.size == cost("a") + cost("b", 3, 1_000)
    await put(backend, "b", size=20)
    assert backend.size == cost("a") + cost("b", 1, 20)
    await backend.delete("a")
    assert backend.size == cost("b", 1, 20)
    check(backend)
    await backend.wipe()
    assert backend.size == len(backend) == 0
    check(backend)


async def test_a_replaced_entry_that_grows_makes_room() -> None:
    """The bound in bytes holds for replacements too."""
    backend = MemoryBackend(max_bytes=5 * cost("a"))
    for key in "abcde":
        await put(backend, key)
    assert await put(backend, "e", size=10 + 2 * cost("a"))
    check(backend)
    assert backend.size <= 5 * cost("a")
    for key in "abcde":
        await put(backend, key, size=10 + 3 * cost("a"))
        check(backend)


async def test_a_replaced_entry_keeps_its_place() -> None:
    """Renewing counts neither as coming anew nor as use: what nobody reads goes, however often it is renewed."""
    backend = MemoryBackend(max_entries=3)
    stamp = (await backend.read("a")).stamp
    for key in ("a", "b", "c", "a", "a"):
        await put(backend, key, stamp=stamp)
    assert [node.key for node in chain(backend)] == ["a", "b", "c"]
    await put(backend, "d", stamp=stamp)
    assert [node.key for node in chain(backend)] == ["b", "c", "d"]


# --- what stays ----------------------------------------------------------------------------------------


async def test_what_is_used_is_spared() -> None:
    """By reads and by peeks; looking at it with `inspect` is no use."""
    backend = MemoryBackend(max_entries=4)
    for key in ("read", "peeked", "inspected", "left"):
        now = backend.clock() + 100
        stamp = (await backend.read(key)).stamp
        await backend.write(Entry(key, "x", None, None, 1, (key,), stamp, now, now, now, now))
    await backend.read("read")
    assert backend.peek("peeked")
    await backend.inspect("inspected")
    await put(backend, "new-1")
    await put(backend, "new-2")
    assert set(backend._entries) == {"read", "peeked", "new-1", "new-2"}


class Lru:
    def __init__(self, size: int) -> None:
        self.size, self.entries = size, OrderedDict[str, None]()

    def get(self, key: str) -> bool:
        hit = key in self.entries
        self.entries[key] = None
        self.entries.move_to_end(key)
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)
        return hit


def trace(seed: int) -> list[str]:
    """What is asked for by a Zipf law, with scans that come by and ask for each thing once."""
    dice = random.Random(seed)
    weights = [1 / rank for rank in range(1, 2_001)]
    asked: list[str] = []
    for scan in range(10):
        asked += [f"z{number}" for number in dice.choices(range(2_000), weights, k=1_000)]
        asked += [f"s{scan}-{number}" for number in range(400)]
    return asked


async def test_a_scan_does_not_drive_out_what_is_in_use() -> None:
    """On a trace with scans more is found than under LRU, by far."""
    for seed in range(3):
        asked, lru, backend = trace(seed), Lru(200), MemoryBackend(max_entries=200)
        found = found_by_lru = 0
        for key in asked:
            found_by_lru += lru.get(key)
            if (await backend.read(key)).entry is not None:
                found += 1
            else:
                await put(backend, key)
        check(backend)
        assert found > 1.1 * found_by_lru


@pytest.mark.parametrize("how", ["expired", "invalidated", "softened", "wiped epoch"])
async def test_the_dead_do_not_crowd_out_the_living(how: str) -> None:
    """Expired and invalid entries go first, wherever they stand: no living one is lost while there are dead ones."""
    clock = FakeClock()
    backend = MemoryBackend(max_entries=60, clock=clock)
    for number in range(60):
        living = number % 2 == 0
        tags = () if living else ("dead",)
        await put(backend, f"{'living' if living else 'dead'}{number}", tags=tags, ttl=100 if living else 10)
    match how:
        case "expired":
            clock.advance(11)
        case "invalidated":
            await backend.invalidate(["dead"])
        case "softened":
            await backend.invalidate(["dead"], soft=True)
        case _:
            for node in backend._entries.values():
                if node.key.startswith("dead"):
                    node.stamp, node.checked = Stamp(-1, 0), None
    for number in range(30):
        await put(backend, f"new{number}")
        check(backend)
    left = set(backend._entries)
    assert len([key for key in left if key.startswith("living")]) == 30
    assert not [key for key in left if key.startswith("dead")]


async def test_the_sweep_is_bounded_and_finds_them_all() -> None:
    """After everything was invalidated, the room is taken by new entries, not by evicting each other."""
    backend = MemoryBackend(max_entries=1_000)
    for number in range(1_000):
        await put(backend, f"old{number}", tags=("all",))
    await backend.invalidate(["all"])
    for number in range(1_000):
        await put(backend, f"new{number}")
    check(backend)
    assert all(key.startswith("new") for key in backend._entries)


async def test_entries_with_a_stale_period_are_not_dead_when_softened() -> None:
    """They may still be served."""
    backend = MemoryBackend(max_entries=4)
    for key in "abcd":
        await put(backend, key, tags=("x",), stale=100)
        await backend.read(key)
    await backend.invalidate(["x"], soft=True)
    for key in "abcd":
        assert (await backend.read(key)).stale


# --- the journal ---------------------------------------------------------------------------------------


async def test_the_journal_is_bounded() -> None:
    """Past `max_tags` the oldest tags go, hard and soft alike, and what is older than they were with them."""
    backend = MemoryBackend(max_tags=10)
    await put(backend, "old")
    for number in range(8):
        await backend.invalidate([f"t{number}"], soft=number % 2 == 0)
        check(backend)
    assert (await backend.read("old")).entry is not None
    for number in range(8, 12):
        await backend.invalidate([f"t{number}"], soft=number % 2 == 0)
        check(backend)
    reading = await backend.read("old")
    assert reading.miss is not None
    assert reading.miss.cause is Cause.PRUNED
    assert len(backend._hard) + len(backend._soft) == 10


async def test_one_tag_over_and_over_is_one_place_in_the_journal() -> None:
    """However often it is invalidated: nothing is forgotten for it."""
    backend = MemoryBackend(max_tags=3)
    await put(backend, "old")
    for _ in range(50):
        await backend.invalidate(["same"])
        await backend.invalidate(["same"], soft=True)
    assert (await backend.read("old")).entry is not None
    check(backend)


async def test_more_tags_at_once_than_the_journal_holds() -> None:
    """Everything from before is a miss; what comes after is kept."""
    backend = MemoryBackend(max_tags=5)
    await put(backend, "old")
    await backend.invalidate([f"t{number}" for number in range(50)])
    check(backend)
    assert (await backend.read("old")).entry is None
    assert await put(backend, "new", tags=("t1",))
    assert (await backend.read("new")).entry is not None


def test_it_says_what_it_holds() -> None:
    """For whoever prints it."""
    assert repr(MemoryBackend()) == "<MemoryBackend: 0 entries, about 0 bytes, journal at 0>"


# --- whatever happens ----------------------------------------------------------------------------------

KEYS = st.sampled_from("abcdefgh")
TAGS = st.sampled_from("tuvw")
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 1_500), st.sets(TAGS), st.integers(1, 20), st.integers(0, 10)),
    st.tuples(st.just("late"), KEYS, st.sets(TAGS)),
    st.tuples(st.just("read"), KEYS),
    st.tuples(st.just("peek"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("invalidate"), st.sets(TAGS, min_size=1), st.booleans()),
    st.tuples(st.just("advance"), st.integers(1, 10)),
    st.just(("wipe",)),
)


@given(st.lists(STEPS, max_size=60), st.integers(1, 6), st.integers(800, 6_000), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_the_queue_holds_together(
    steps: list[tuple[Any, ...]], max_entries: int, max_bytes: int, max_tags: int
) -> None:
    """After every step: both links of the queue, the dictionary, the sizes, the bounds, the journal's order."""

    async def run() -> None:
        clock = FakeClock()
        backend = MemoryBackend(max_entries=max_entries, max_bytes=max_bytes, max_tags=max_tags, clock=clock)
        older = (await backend.read("a")).stamp
        for step in steps:
            match step:
                case "put", key, size, tags, ttl, stale:
                    older = (await backend.read(key)).stamp
                    await put(backend, key, size=size, tags=tuple(tags), ttl=ttl, stale=stale)
                case "late", key, tags:
                    await put(backend, key, tags=tuple(tags), stamp=older)
                case "read", key:
                    reading = await backend.read(key)
                    assert (reading.entry is None) == (reading.miss is not None)
                case "peek", key:
                    entry = backend.peek(key)
                    reading = await backend.read(key)
                    assert entry is None or (reading.entry is entry and not reading.stale)
                case "delete", key:
                    await backend.delete(key)
                case "invalidate", tags, soft:
                    await backend.invalidate(tags, soft=soft)
                    if not soft:
                        for node in backend._entries.values():
                            if not tags.isdisjoint(node.tags):
                                assert (await backend.read(node.key)).entry is None
                case "advance", seconds:
                    clock.advance(seconds)
                case _:
                    await backend.wipe()
            check(backend)

    anyio.run(run)
