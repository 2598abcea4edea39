"""Requests a second under uvicorn, each server in turn, as a share of what a bare ASGI callable reaches."""

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.environments import ENVIRONMENTS, BenchmarkError, Worker
from benchmarks.plot import Bar, Plot
from benchmarks.processes import HOST, processor_time, uvicorn
from benchmarks.report import Report, Table, Target, duration, figure, percent, step
from benchmarks.rounds import turned
from benchmarks.subjects import Run
from benchmarks.watching import watching

CONNECTIONS, SECONDS, TRIES = 32, 0.4, 5
PATH = "/products/635"
CACHED = "computed"  # answers how often the route ran


@dataclass(frozen=True, slots=True)
class Contender:
    label: str
    library: str
    module: str
    cached: bool = False
    redis: bool = False
    app: str = "app"
    #: What `Cache-Status` says of a URL that nobody asked for before; empty without one, `None` where nobody looks.
    status: str | None = None


BARE = "bare ASGI callable"
STARLETTE = "Starlette, uncached, bytes"
READY = "ready bytes, FastAPI middleware"
AROUND = "asynctag, public, around FastAPI"
PUBLIC = "asynctag, public, Starlette"
PUBLIC_PLAIN = "asynctag, public, telemetry off"
PUBLIC_FASTAPI = "asynctag, public, FastAPI"
DICTS = ("cashews, FastAPI, dict", "fastapi-cache2, FastAPI, dict")
CONTENDERS = [
    Contender(BARE, "asynctag", "bare"),
    Contender("bare, with a hit's six headers", "asynctag", "bare_headers"),
    Contender(READY, "asynctag", "fastapi_ready"),
    Contender(AROUND, "asynctag", "asynctag_around", True),
    Contender(PUBLIC, "asynctag", "asynctag_starlette", True),
    Contender(PUBLIC_PLAIN, "asynctag", "asynctag_fastapi_plain", True),
    Contender(PUBLIC_FASTAPI, "asynctag", "asynctag_fastapi", True),
    Contender("asynctag, at the endpoint, FastAPI", "asynctag", "asynctag_endpoint", True),
    Contender(STARLETTE, "asynctag", "starlette_uncached"),
    Contender("FastAPI, uncached, model", "asynctag", "fastapi_uncached"),
    Contender("FastAPI, uncached, dict", "asynctag", "fastapi_uncached_dict"),
    Contender("cashews, FastAPI, model", "cashews", "cashews_fastapi", True),
    Contender("cashews, FastAPI, dict", "cashews", "cashews_fastapi_dict", True),
    Contender("fastapi-cache2, FastAPI, model", "fastapi-cache2", "fastapi_cache2_fastapi", True),
    Contender("fastapi-cache2, FastAPI, dict", "fastapi-cache2", "fastapi_cache2_fastapi_dict", True),
]


def run(run: Run) -> Report:
    report = Report("http", "A cached response of 1 KB over HTTP")
    starts, rounds = run.pick(6, 1), run.pick(4, 4)
    found = started(report.name, CONTENDERS, starts, rounds)
    tell(report, found)
    report.notes[-1] += how_often(starts)
    report.targets += [
        Target("public, around FastAPI: to the bare callable", found.share(AROUND, BARE), 0.85, at_least=True),
        Target(
            "public, around FastAPI: to an uncached Starlette route", found.share(AROUND, STARLETTE), 1, at_least=True
        ),
        Target(
            "public, in Starlette: to an uncached Starlette route", found.share(PUBLIC, STARLETTE), 1, at_least=True
        ),
        *(
            Target(f"public, around FastAPI: to {label}", found.share(AROUND, label), 6, at_least=True)
            for label in found.rates
            if label in DICTS
        ),
    ]
    return report


@dataclass(slots=True)
class Found:
    """By contender: requests a second and the server's seconds for one, a round each; the round trips to Redis for one.

    `busy`: the share of its time that the generator was busy against the bare callable, a round each.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    trips: dict[str, float] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)

    def share(self, one: str, other: str) -> float:
        return median(a / b for a, b in zip(self.rates[one], self.rates[other], strict=True))


def started(
    name: str, contenders: Sequence[Contender], starts: int, rounds: int, *, path: str = PATH, base: str = BARE
) -> Found:
    """What is found in all rounds of several starts of the servers."""
    found = Found()
    for _ in range(starts):
        one = measure(name, contenders, rounds, path=path, base=base)
        for label in one.rates:
            found.rates.setdefault(label, []).extend(one.rates[label])
            found.costs.setdefault(label, []).extend(one.costs[label])
        found.busy += one.busy
    return found


def how_often(starts: int) -> str:
    return f" The servers were started {starts} times, for where a process lies in memory tells for as long as it runs."


def measure(
    name: str,
    contenders: Sequence[Contender],
    rounds: int,
    redis: str = "",
    *,
    path: str = PATH,
    base: str = BARE,
) -> Found:
    """Each contender in turn, each a server; those with a cache in Redis have a database of their own at `redis`.

    `path` may have a `{}`, for a number that is new with each request. How busy the generator was is said of `base`.
    """
    found = Found()
    ports: dict[str, int] = {}
    pids: dict[str, int] = {}
    with ExitStack() as stack:
        for number, one in enumerate(contenders):
            step(f"{name}: starting {one.label}")
            app = f"benchmarks.servers.{one.module}:{one.app}"
            url = f"{redis}/{number}" if one.redis else ""
            settings = {"REDIS_URL": url}
            port, pids[one.label] = stack.enter_context(uvicorn(ENVIRONMENTS[one.library].python, app, settings))
            for _ in range(3):
                get(port, PATH)
            if one.status is not None and (said := cache_status(port, path.format(0))) != one.status:
                raise BenchmarkError(f"{one.label}: Cache-Status is {said!r}, not {one.status!r}")
            ports[one.label], found.rates[one.label], found.costs[one.label] = port, [], []
            if url:
                with watching(url) as seen:
                    for _ in range(20):
                        get(port, PATH)
                found.trips[one.label] = round(seen.trips / 20, 1)
        load = stack.enter_context(Worker(Path(sys.executable), "benchmarks.workers.load", core=1))
        computed = {one.label: get(ports[one.label], f"/{CACHED}") for one in contenders if one.cached}
        # Short rounds: the machine has not changed much between the first contender of one and the last.
        for number in range(rounds):
            step(f"{name}: round {number + 1} of {rounds}")
            for label in turned(list(ports), number):
                for _ in range(TRIES):
                    spent = processor_time(pids[label])
                    answer = load.ask("run", port=ports[label], path=path, seconds=SECONDS, connections=CONNECTIONS)
                    if answer["rate"]:
                        break
                else:
                    raise BenchmarkError(f"{label}: no answer in {SECONDS} s; is the machine that busy?")
                found.rates[label].append(answer["rate"])
                found.costs[label].append((processor_time(pids[label]) - spent) / answer["done"])
                if label == base:
                    found.busy.append(answer["busy"])
        for label, before in computed.items():
            if get(ports[label], f"/{CACHED}") != before:
                raise BenchmarkError(f"{label}: the route ran while hits were measured")
    return found


def tell(report: Report, found: Found) -> None:
    shares = {label: found.share(label, BARE) for label in found.rates}
    report.tables.append(
        Table(
            ["", "to the bare callable", "requests a second", "processor time of the server for one"],
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
    report.notes.append(how_busy(found, "the bare callable"))
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Requests a second as a share of a bare ASGI callable's, more is better",
            [
                (
                    "",
                    [
                        Bar(label, value, figure(value), label.startswith("asynctag"))
                        for label, value in sorted(shares.items(), key=lambda item: -item[1])
                    ],
                )
            ],
        )
    )


def how_busy(found: Found, base: str) -> str:
    busy = median(found.busy)
    return f"The generator was busy for {percent(busy)} of its time against {base}" + (
        ": it may have held the fastest back." if busy > 0.9 else ": it held nobody back."
    )


def get(port: int, path: str) -> bytes:
    return answer_of(port, path)[1]


def cache_status(port: int, path: str) -> str:
    return answer_of(port, path)[0]


def answer_of(port: int, path: str) -> tuple[str, bytes]:
    """`Cache-Status`, empty where there is none, and the body."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as response:
            return response.headers.get("cache-status", ""), response.read()
    except urllib.error.URLError as error:
        raise BenchmarkError(f"{path}: {error}") from error
