"""The harness of the benchmarks: what it computes and draws, never how long anything takes."""

import asyncio
import copy
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from benchmarks import plot, processes, report, rounds, traces
from benchmarks.__main__ import PAGE, SUBJECTS
from benchmarks.environments import BenchmarkError
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target
from benchmarks.servers import page
from benchmarks.subjects import redis_peers
from benchmarks.subjects.redis import BODIES, commands_of
from benchmarks.subjects.windows import moments
from benchmarks.workers.commands import Function, Library
from benchmarks.workers.load import Client
from benchmarks.workers.over_redis import OverRedis, spend
from benchmarks.workers.pages import pages
from benchmarks.workers.payloads import SPOIL, VALUES, prose, sizes
from benchmarks.workers.tally import Tally


@pytest.fixture
def anyio_backend() -> str:
    """The workers run on asyncio."""
    return "asyncio"


def test_the_order_turns_so_that_everyone_comes_first_and_last_as_often() -> None:
    orders = [rounds.turned(["a", "b", "c"], number) for number in range(6)]
    assert Counter(order[0] for order in orders) == Counter(order[-1] for order in orders) == Counter("abc" * 2)


def test_every_contender_is_asked_once_a_round_in_turn() -> None:
    asked: list[str] = []

    def contender(name: str, seconds: float) -> rounds.Timed:
        def timed(n: int) -> float:
            asked.append(name)
            return seconds * n

        return timed

    series = rounds.interleave({"a": contender("a", 2), "b": contender("b", 1)}, 4, fixed=3)
    assert series == {"a": [2] * 4, "b": [1] * 4}
    assert asked == ["a", "b", "b", "a", "b", "a", "a", "b"]


def test_a_ratio_is_taken_within_each_round() -> None:
    """Noise that doubles both in a round leaves it as it was."""
    assert rounds.ratio({"a": [2, 4, 20], "b": [1, 2, 10]}, "a", "b") == 2


def test_each_measure_is_a_series_of_its_own_for_everyone_asked_in_turn() -> None:
    asked: list[str] = []

    def contender(name: str, seconds: float) -> dict[str, float]:
        asked.append(name)
        return {"seconds": seconds, "processor": seconds / 2}

    found = rounds.in_turn({"a": lambda: contender("a", 2), "b": lambda: contender("b", 1)}, 2)
    assert found == {"seconds": {"a": [2, 2], "b": [1, 1]}, "processor": {"a": [1, 1], "b": [0.5, 0.5]}}
    assert asked == ["a", "b", "b", "a"]


def test_calibration_fills_the_time_and_stops_at_the_most() -> None:
    assert rounds.calibrate(lambda n: n * 1e-4, aim=0.1, most=10_000) == 1_000
    assert rounds.calibrate(lambda n: 0.0, aim=0.1, most=500) == 500


@pytest.mark.parametrize(
    ("value", "text"), [(0.0000015, "1.50 µs"), (0.25, "250 ms"), (3e-8, "30 ns"), (2, "2 s"), (0.0123, "12.3 ms")]
)
def test_durations_are_in_the_unit_that_reads_best(value: float, text: str) -> None:
    assert report.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "0.12"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0"), (0.0012, "0.0012")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert report.figure(value) == text


def test_a_target_is_met_from_its_own_side() -> None:
    assert Target("less", 1, 1).met
    assert not Target("less", 1.01, 1).met
    assert Target("more", 1, 1, at_least=True).met
    assert not Target("more", 0.99, 1, at_least=True).met


def test_tables_are_the_same_in_the_terminal_and_on_the_page() -> None:
    table = Table(["a hit", "time"], [["`str`", "1 µs"], ["nested", "**no**"]])
    assert table.markdown().splitlines() == [
        "| a hit | time |",
        "| --- | ---: |",
        "| `str` | 1 µs |",
        "| nested | **no** |",
    ]
    assert table.text().splitlines() == ["a hit   time", "------------", "str     1 µs", "nested    no"]


def test_figures_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- machine -->\nold\n<!-- /machine -->\nkept\n<!-- hit -->\n<!-- /hit -->\nend\n")
    one = Report("hit", "Hits", tables=[Table(["a"], [["b"]])], plots=[Plot("hit", "Hits", "", [])])
    report.write(page, tmp_path / "bench", [one], "a machine")
    report.write(page, tmp_path / "bench", [one], "a machine")
    text = page.read_text()
    assert text.startswith(
        "# Title\n<!-- machine -->\na machine\n<!-- /machine -->\nkept\n<!-- hit -->\n![Hits](bench/hit.svg)"
    )
    assert text.endswith("| a |\n| --- |\n| b |\n<!-- /hit -->\nend\n")
    assert (tmp_path / "bench" / "hit.svg").exists()
    with pytest.raises(ValueError, match="no <!-- other -->"):
        report.between(text, "other", "")


def test_the_page_has_a_place_for_every_subject() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("machine", *SUBJECTS):
        report.between(text, name, "")


@pytest.mark.parametrize("log", [False, True])
def test_a_plot_is_svg_without_scripts_whose_bars_are_in_order(log: bool) -> None:
    bars = [Bar("less & less", 1, "1"), Bar("more", 10, "10", ours=True), Bar("nothing", 0, "0")]
    root = ElementTree.fromstring(Plot("name", "<Title>", "about", [("group", bars)], log=log).svg())
    space = "{http://www.w3.org/2000/svg}"
    less, more, nothing = (float(bar.attrib["width"]) for bar in root.iter(f"{space}rect"))
    assert nothing <= less < more <= plot.WIDTH - plot.LABELS
    assert [text.text for text in root.iter(f"{space}text") if text.text == "less & less"]
    assert not list(root.iter(f"{space}script"))
    assert max(float(bar.attrib["y"]) for bar in root.iter(f"{space}rect")) < float(root.attrib["height"])


def test_a_trace_is_the_same_every_time_and_prefers_the_first_keys() -> None:
    trace = traces.zipf(5_000, 1_000, 0.9)
    assert trace == traces.zipf(5_000, 1_000, 0.9)
    assert 0 <= min(trace) <= max(trace) < 1_000
    assert [key for key, _ in Counter(trace).most_common(1)] == [0]


def test_scans_are_their_share_of_a_trace_and_never_come_back() -> None:
    trace = traces.with_scans([1] * 7_000, 0.3)
    scanned = [key for key in trace if key < 0]
    assert len(scanned) / len(trace) == pytest.approx(0.3, abs=0.01)
    assert len(set(scanned)) == len(scanned)


def test_lru_drops_what_was_not_used_for_longest() -> None:
    assert traces.lru_ratio([1, 2, 1, 3, 1, 2], 2) == pytest.approx(2 / 6)


def test_payloads_are_a_kilobyte_and_a_careless_caller_changes_all_but_text() -> None:
    assert all(950 <= size <= 1_100 for size in sizes().values())
    for name, value in VALUES.items():
        copied = copy.deepcopy(value)
        SPOIL[name](copied)
        assert (copied == value) == (name == "str")
    assert set(SPOIL) == set(VALUES)


@pytest.mark.parametrize("size", BODIES)
def test_prose_has_its_size_and_compresses_as_text_does(size: int) -> None:
    text = prose(size).encode()
    assert len(text) == size
    assert 0.3 < len(zlib.compress(text)) / size < 0.6


@pytest.mark.anyio
async def test_calls_are_spread_over_callers_who_keep_to_their_own_arguments() -> None:
    called: dict[asyncio.Task[None] | None, list[str]] = {}

    async def function(argument: str) -> None:
        called.setdefault(asyncio.current_task(), []).append(argument)

    spent = await spend(function, ["a", "b", "c"], 8, 3)
    assert sorted(called.values()) == [["a"] * 3, ["b"] * 3, ["c"] * 2]
    assert spent.keys() == {"seconds", "processor"}


def test_commands_are_told_without_those_that_come_now_and_then() -> None:
    assert commands_of({"commands": {"GET": 1.0, "SADD": 5.05, "TIME": 0.1}}) == "`GET`, 5× `SADD`"
    assert commands_of({"commands": {}}) == "–"


@pytest.fixture
def valkey() -> Iterator[str]:
    try:
        with processes.valkey() as url:
            yield url
    except BenchmarkError as error:
        pytest.skip(str(error))


class Commanded(Library):
    """Sends so many commands for a call."""

    def cached(self, function: Function, *tags: str) -> Function:
        return function


@pytest.mark.anyio
async def test_round_trips_are_counted_by_the_server(valkey: str) -> None:
    """What comes in one piece is one; what a script calls is not told."""
    async with Redis.from_url(valkey) as redis:

        async def one_by_one(number: int) -> None:
            await redis.set("key", number)
            await redis.get("key")

        async def at_once(number: int) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                await pipeline.set("key", number).get("key").execute()

        async def by_script(number: int) -> None:
            await redis.eval("return redis.call('GET', KEYS[1])", 1, "key")

        async def not_at_all(number: int) -> None:
            await asyncio.sleep(0)

        await redis.ping()  # so that it is connected
        over = OverRedis(Commanded(), valkey)
        counted = {
            function.__name__: await over.count(function, range(4), 4, 1)
            for function in (one_by_one, at_once, by_script, not_at_all)
        }
    assert counted == {
        "one_by_one": {"trips": 2, "commands": {"SET": 1, "GET": 1}},
        "at_once": {"trips": 1, "commands": {"SET": 1, "GET": 1}},
        "by_script": {"trips": 1, "commands": {"EVAL": 1}},
        "not_at_all": {"trips": 0, "commands": {}},
    }


def test_a_library_without_tags_is_not_asked_to_invalidate() -> None:
    left_out = {
        (label, what)
        for label in redis_peers.SETTINGS
        for what in (*redis_peers.ASKED, redis_peers.LAST)
        if not redis_peers.takes_part(label, what)
    }
    assert left_out == {("aiocache", "an invalidation"), ("aiocache", redis_peers.LAST)}


# --- pages with windows ----------------------------------------------------------------------------------


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
WITH_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


class Connection(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
@pytest.mark.parametrize("answer", [CHUNKED, WITH_LENGTH], ids=["chunked", "with its length"])
def test_an_answer_is_counted_when_all_of_it_is_there(answer: bytes, size: int) -> None:
    """In pieces of any size, and not before its last; then the next request goes out."""
    connection = Connection()
    client = Client(iter([b"first", b"second", b"third"]))
    client.connection_made(connection)
    for number in (1, 2):
        for at in range(0, len(answer), size):
            assert client.done == number - 1
            client.data_received(answer[at : at + size])
        assert client.done == number
    assert connection.sent == [b"first", b"second", b"third"]
    assert client.failure is None


def test_the_first_byte_is_of_the_body_and_the_last_of_all() -> None:
    """The headers alone are not what anybody waits for; the end of the connection is not the end of the page."""
    pieces = [b"HTTP/1.1 200 OK\r\n", b"content-length: 3\r\n\r\n", b"a", b"bc"]
    seconds = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    assert moments(iter(pieces), lambda: next(seconds)) == (3.0, 4.0)
    with pytest.raises(BenchmarkError, match="no page came"):
        moments([b"HTTP/1.1 500 Internal Server Error\r\n\r\nno"], lambda: 1.0)


async def page_of(app: object) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
        return (await client.get("/products/635")).text


@pytest.mark.anyio
async def test_pages_with_and_without_windows_have_the_same_text() -> None:
    """On a miss and on a hit, with sub-requests too: what is compared is what it costs to make one page."""
    plain = await page_of(page.uncached)
    assert 20_000 < len(plain) < 21_000
    for app in (page.plain, page.windows, page.turns, page.timers, page.sub_requests):
        with page.cache.override(MemoryBackend()):
            assert [await page_of(app) for _ in range(3)] == [plain] * 3


@pytest.mark.anyio
async def test_functions_with_and_without_windows_give_the_same_text() -> None:
    by_kind = pages(Cache(default_ttl=60))
    given = {kind: {await function(635) for _ in range(2)} for kind, function in by_kind.items()}
    assert len(set.union(*given.values())) == 1, given


# --- what several processes have counted ----------------------------------------------------------------


def test_a_read_is_held_against_what_any_process_has_acknowledged(tmp_path: Path) -> None:
    """Also one that was killed since, and never against less than before."""
    mine, others = (Tally(tmp_path / "tally", processes=2, rows=3) for _ in range(2))
    others.acknowledge(1, 2, 7)
    others.acknowledge(1, 2, 5)
    mine.acknowledge(0, 2, 6)
    assert [mine.required(row) for row in range(3)] == [0, 0, 7]


def test_the_counts_of_all_processes_are_summed(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "tally", processes=2, rows=3)
    for process in (0, 1, 1):
        tally.count(process, "reads")
    tally.count(1, "stale", 4)
    tally.acknowledge(0, 0, 9)
    assert tally.counts() == {"reads": 3, "stale": 4, "writes": 0, "failed": 0}
