"""asynctag, cashews and aiocache on one Redis: hits, misses and invalidations, with their round trips."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from benchmarks.environments import Worker
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, duration, figure, step
from benchmarks.rounds import Series, in_turn
from benchmarks.subjects import Run

CALLERS = 50
CLIENT_SIDE = "cashews, client-side"
SETTINGS: dict[str, tuple[str, ...]] = {"asynctag": (), "cashews": (), CLIENT_SIDE: ("client-side",), "aiocache": ()}
"""The contenders, and what their workers are told."""
WITHOUT_TAGS = ("aiocache",)

ASKED: dict[str, tuple[str, dict[str, int]]] = {
    "a hit": ("hits", {"callers": 1}),
    f"a hit, {CALLERS} callers": ("hits", {"callers": CALLERS}),
    "a miss, stored": ("misses", {"callers": 1}),
    f"a miss, {CALLERS} callers": ("misses", {"callers": CALLERS}),
    "an invalidation": ("invalidations", {}),
}
COUNTED = ("a hit", "a miss, stored", "an invalidation")
"""Of which the round trips are told too."""

GROUP = 1_000
LAST = f"of {GROUP:,} entries"


def workers_of(run: Run) -> dict[str, Worker]:
    return {
        label: run.redis_worker(label.partition(",")[0], "asyncio", *settings) for label, settings in SETTINGS.items()
    }


def run(run: Run) -> Report:
    report = Report("redis-peers", "Hits, misses and invalidations on Redis: 1 KB, 5 tags")
    workers = workers_of(run)
    times: dict[str, Series] = {}
    for what, (command, more) in ASKED.items():
        step(f"redis-peers: {what}")
        n = run.pick(500, 200) if "callers" in what else run.pick(100, 50)
        asked = {label: worker for label, worker in workers.items() if takes_part(label, what)}
        asking: Mapping[str, Callable[[], Any]] = {
            label: partial(worker.ask, command, n=n, **more) for label, worker in asked.items()
        }
        times[what] = in_turn(asking, run.pick(9, 3))["seconds"]
    times[LAST] = {label: [] for label in workers if takes_part(label, LAST)}
    rounds = run.pick(3, 2)
    for number in range(rounds):
        step(f"redis-peers: an invalidation {LAST}, round {number + 1} of {rounds}")
        for label, took in times[LAST].items():
            took.append(workers[label].ask("invalidation", dependents=GROUP))
    step("redis-peers: round trips")
    trips = {
        what: {label: workers[label].ask("counted", what=ASKED[what][0], n=20)["trips"] for label in times[what]}
        for what in COUNTED
    }
    tell(report, list(workers), times, trips)
    return report


def takes_part(label: str, what: str) -> bool:
    return label not in WITHOUT_TAGS or what not in ("an invalidation", LAST)


def tell(
    report: Report, labels: list[str], times: Mapping[str, Series], trips: Mapping[str, Mapping[str, float]]
) -> None:
    def cell(label: str, what: str) -> str:
        if label not in times[what]:
            return "no tags"
        time = median(times[what][label])
        if "callers" in what:
            return f"{1 / time:,.0f} a second"
        counted = trips.get(what)
        return duration(time) + (f" ({figure(round(counted[label], 1))})" if counted else "")

    report.tables.append(Table(["", *times], [[label, *(cell(label, what) for what in times)] for label in labels]))
    report.notes += [
        "In parentheses: round trips to Redis, as the server counts them.",
        "cashews with `client_side=True` keeps what it has read in the memory of the process, and is told by Redis of "
        "changes: its hits need no round trip, and are as old as the news is late.",
    ]
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Time of one; callers at once: time by number. Less is better",
            [
                (
                    what if what != LAST else f"an invalidation {LAST}",
                    [
                        Bar(label, time := median(series[label]), duration(time), label == "asynctag")
                        for label in labels
                        if label in series
                    ],
                )
                for what, series in times.items()
            ],
            log=True,
        )
    )
