"""What windows cost: of a cached page over HTTP, of a hit, and how long a page with slow ones takes."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.environments import ENVIRONMENTS, BenchmarkError
from benchmarks.plot import Bar, Plot
from benchmarks.processes import HOST, uvicorn, valkey
from benchmarks.report import Report, Table, Target, duration, figure, step
from benchmarks.rounds import Series, in_turn, interleave, ratio
from benchmarks.subjects import Run
from benchmarks.subjects.http import PATH, Contender, Found, how_busy, measure

PAGE, WINDOWS = "cached page, no windows", "3 windows"
REDIS_PAGE, REDIS_WINDOWS = "Redis: cached page, no windows", "Redis: 3 windows"


def contender(label: str, app: str, *, cached: bool = True, redis: bool = False) -> Contender:
    return Contender(label, "asynctag", "page", cached=cached, redis=redis, app=app)


CONTENDERS = [
    contender(PAGE, "plain"),
    contender(WINDOWS, "windows"),
    contender("3 windows that wait for a turn of the loop", "turns"),
    contender("3 windows that wait for a timer", "timers"),
    contender("3 sub-requests within the application", "sub_requests"),
    contender("Starlette, uncached, ready text", "uncached", cached=False),
    contender(REDIS_PAGE, "plain", redis=True),
    contender(REDIS_WINDOWS, "windows", redis=True),
]
LEAST = 0.4
"""The share of the requests a second without windows that there are to be with three."""

ONE, TEN, AWAITED = "one window", "ten windows", "ten, awaited one after the other"
SLOW = {ONE: "one", TEN: "ten", AWAITED: "ten_awaited"}
FIRST, LAST = "first byte", "last byte"

HIT, HIT_WINDOWS = "hit, no windows", "hit, 3 windows"
HITS = {
    HIT: "plain",
    HIT_WINDOWS: "windows",
    "hit, 3 windows that wait for a turn of the loop": "turns",
    "Jinja2, of a template that is kept compiled": "rendered",
    "Jinja2, of a cached text": "compiled",
}


def run(run: Run) -> Report:
    report = Report("windows", "Windows in a cached page of 20 KB")
    with valkey(core=1) as url:  # as the generator: the other is the application's
        found = measure(report.name, CONTENDERS, run.pick(25, 4), url, base=PAGE)
    tell_rates(report, found)
    tell_waits(report, waits(run))
    step("windows: hits of a cached function")
    hits = {label: run.timed("asynctag", "page", kind=kind) for label, kind in HITS.items()}
    tell_hits(report, interleave(hits, run.pick(21, 5), aim=0.04))
    report.notes.append(how_busy(found, PAGE))
    return report


def tell_rates(report: Report, found: Found) -> None:
    shares = {label: found.share(label, PAGE) for label in found.rates}
    report.tables.append(
        Table(
            [
                "over HTTP",
                "requests a second, to no windows",
                "requests a second",
                "processor time of the server for one",
            ],
            [
                [
                    label,
                    f"{shares[label]:.2f}",
                    f"{median(found.rates[label]):,.0f}",
                    duration(median(found.costs[label])),
                ]
                for label in shares
            ],
        )
    )
    report.targets += [
        Target(f"{windows}: requests a second, to no windows", found.share(windows, page), LEAST, at_least=True)
        for windows, page in ((WINDOWS, PAGE), (REDIS_WINDOWS, REDIS_PAGE))
    ]
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Requests a second as a share of the cached page's without windows, more is better",
            [("", [Bar(label, value, figure(value), "windows" in label) for label, value in shares.items()])],
        )
    )


# --- windows that take their time


def waits(run: Run) -> dict[str, Series]:
    """When the first byte of a body comes, and the last, in seconds from the request on."""
    with ExitStack() as stack:
        ports = {}
        for label, app in SLOW.items():
            step(f"windows: starting {label}")
            name = f"benchmarks.servers.page:{app}"
            ports[label], _ = stack.enter_context(uvicorn(ENVIRONMENTS["asynctag"].python, name, {}))
            moments_of(ports[label])
        step("windows: slow ones")
        return in_turn({label: lambda port=port: moments_of(port) for label, port in ports.items()}, run.pick(21, 5))  # type: ignore[misc]


def moments_of(port: int) -> dict[str, float]:
    with socket.create_connection((HOST, port), 10) as connection:
        started = time.perf_counter()
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode())
        first, last = moments(_received(connection), time.perf_counter)
        return {FIRST: first - started, LAST: last - started}


def _received(connection: socket.socket) -> Iterator[bytes]:
    while data := connection.recv(65_536):
        yield data


def moments(pieces: Iterable[bytes], clock: Callable[[], float]) -> tuple[float, float]:
    """When the first of a response's body was there, and the last of it. Raises `BenchmarkError` without a 200."""
    received, first, last = b"", 0.0, 0.0
    for piece in pieces:
        last = clock()
        received += piece
        if not first and received.partition(b"\r\n\r\n")[2]:
            first = last
    if not first or not received.startswith(b"HTTP/1.1 200"):
        raise BenchmarkError(f"no page came: {received[:60]!r}")
    return first, last


def tell_waits(report: Report, found: dict[str, Series]) -> None:
    times = {label: {moment: median(found[moment][label]) for moment in (FIRST, LAST)} for label in SLOW}
    report.tables.append(
        Table(
            ["windows of 50 ms each", FIRST, LAST],
            [[label, duration(times[label][FIRST]), duration(times[label][LAST])] for label in SLOW],
        )
    )
    report.targets += [
        Target("ten windows of 50 ms: the last byte, to that of one", ratio(found[LAST], TEN, ONE), 1.2),
        Target("ten windows of 50 ms: the first byte", times[TEN][FIRST] * 1_000, 10, unit=" ms"),
    ]
    report.plots.append(
        Plot(
            "windows-wait",
            "Windows of 50 ms each",
            "Time to the first byte of the page and to the last, less is better",
            [
                (
                    label,
                    [
                        Bar(moment, times[label][moment], duration(times[label][moment]), label is not AWAITED)
                        for moment in (FIRST, LAST)
                    ],
                )
                for label in SLOW
            ],
        )
    )


# --- without HTTP


def tell_hits(report: Report, series: Series) -> None:
    report.tables.append(
        Table(
            ["a `str` of 20 KB", "time", "to a hit without windows", "to one with 3"],
            [
                [
                    label,
                    duration(median(series[label])),
                    f"{figure(ratio(series, label, HIT))}×",
                    f"{figure(ratio(series, label, HIT_WINDOWS))}×",
                ]
                for label in series
            ],
        )
    )
