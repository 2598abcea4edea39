"""A hit from Redis beside redis-py's own `GET` of the same bytes, in one process; and what stores and invalidates."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from benchmarks.environments import Worker
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure, step
from benchmarks.rounds import Series, in_turn, ratio
from benchmarks.subjects import Run

LOOPS = ("asyncio", "uvloop")
CALLERS = 50

GET, READ, HIT, FIRST = "redis-py, `GET`", "backend read, decoded", "hit of a cached function", "first hit in a process"
HITS = {GET: "gets", READ: "reads", HIT: "hits", FIRST: "first_hits"}
ALONE = {"asyncio": 1.15, "uvloop": 1.15}
"""How many times a `GET` a hit of one caller may take."""
TOGETHER = {"asyncio": 4.0, "uvloop": 3.0}
"""How many times as many hits as `GET`s there are to be, of many callers at once."""
PROCESSOR = 15.0
"""The client's microseconds for a hit, with many callers."""

SIZES = (1, 1_000, 100_000)
BODIES = (1_024, 10_240, 102_400)
BODY_READS = {"hit": "sized_hits", "`GET` of these bytes": "sized_gets", "`GET` of the plain text": "plain_gets"}


def run(run: Run) -> Report:
    report = Report("redis", "Hits from Redis: 1 KB, 5 tags")
    hits = {loop: measure_hits(run, loop) for loop in LOOPS}
    tell_hits(report, hits)
    measure_writes(run, report)
    measure_bodies(run, report)
    measure_dependents(run, report)
    versions = run.redis_worker("asynctag", LOOPS[0]).ask("versions")
    report.notes.append(
        ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". redis-py with its default pool: a connection for each of many callers."
    )
    return report


def asking(worker: Worker, command: str, **arguments: Any) -> Callable[[], Mapping[str, Any]]:
    return partial(worker.ask, command, **arguments)


# --- hits


def measure_hits(run: Run, loop: str) -> dict[int, dict[str, Series]]:
    """By how many callers, and by what is measured."""
    worker = run.redis_worker("asynctag", loop)
    found: dict[int, dict[str, Series]] = {}
    # Short rounds and many: the machine has not changed much between the first contender of one and the last. But of
    # many callers' not so short that it is their beginning which is measured.
    for callers, n, rounds in ((1, 200, run.pick(31, 7)), (CALLERS, 3_000, run.pick(15, 5))):
        step(f"redis: {loop}, hits, callers: {callers}")
        found[callers] = in_turn(
            {label: asking(worker, command, n=n, callers=callers) for label, command in HITS.items()}, rounds
        )
    return found


def tell_hits(report: Report, hits: dict[str, dict[int, dict[str, Series]]]) -> None:
    rows: list[list[str]] = []
    for loop in LOOPS:
        alone, together = hits[loop][1]["seconds"], hits[loop][CALLERS]["seconds"]
        processor = hits[loop][CALLERS]["processor"]
        for label in HITS:
            rows.append(
                [
                    f"{loop}: {label}",
                    duration(middle(alone, label)),
                    f"{figure(ratio(alone, label, GET))}×",
                    f"{1 / middle(together, label):,.0f}",
                    f"{figure(ratio(together, GET, label))}×",
                    f"{duration(middle(processor, label))} ({duration(min(processor[label]))})",
                ]
            )
        report.targets += [
            Target(f"{loop}: a hit to redis-py's `GET`, one caller", ratio(alone, HIT, GET), ALONE[loop]),
            Target(
                f"{loop}: hits a second to `GET`s, {CALLERS} callers",
                ratio(together, GET, HIT),
                TOGETHER[loop],
                at_least=True,
            ),
            Target(
                f"{loop}: the client's processor time for a hit, {CALLERS} callers",
                middle(processor, HIT) * 1e6,
                PROCESSOR,
                unit=" µs",
            ),
        ]
    headers = [
        "",
        "one caller",
        "to `GET`",
        f"{CALLERS} callers: a second",
        "to `GET`",
        "client's processor time (least)",
    ]
    report.tables.append(Table(headers, rows))
    report.plots.append(
        Plot(
            "redis",
            f"Reads from Redis by {CALLERS} callers at once",
            "Reads a second of one process, more is better",
            [
                (
                    loop,
                    [
                        Bar(label.replace("`", ""), rate := 1 / middle(series, label), f"{rate:,.0f}", label != GET)
                        for series in [hits[loop][CALLERS]["seconds"]]
                        for label in HITS
                    ],
                )
                for loop in LOOPS
            ],
        )
    )


def middle(series: Series, label: str) -> float:
    return median(series[label])


# --- stores and invalidations


WRITES = {
    "a miss, computed and stored": ("misses", {"callers": 1}),
    "`cache.set`": ("stores", {}),
    "`cache.invalidate` of one tag": ("invalidations", {}),
}
ROUND_TRIPS = {"a miss, computed and stored": 2, "`cache.set`": 1, "`cache.invalidate` of one tag": 1}


def measure_writes(run: Run, report: Report) -> None:
    workers = {loop: run.redis_worker("asynctag", loop) for loop in LOOPS}
    times: dict[str, Series] = {}
    for loop, worker in workers.items():
        step(f"redis: {loop}, stores and invalidations")
        times[loop] = in_turn(
            {label: asking(worker, command, n=run.pick(200, 50), **more) for label, (command, more) in WRITES.items()},
            run.pick(11, 3),
        )["seconds"]
    step("redis: round trips")
    worker = workers[LOOPS[0]]
    counted = {
        "a hit": worker.ask("counted", what="hits", n=20),
        FIRST: worker.ask("counted", what="first_hits", n=20),
        **{label: worker.ask("counted", what=command, n=20) for label, (command, _) in WRITES.items()},
    }
    report.tables.append(
        Table(
            ["5 tags, one caller", "round trips", "commands", *LOOPS],
            [
                [
                    label,
                    figure(round(found["trips"], 1)),
                    commands_of(found),
                    *(duration(middle(times[loop], label)) if label in WRITES else "" for loop in LOOPS),
                ]
                for label, found in counted.items()
            ],
        )
    )
    report.targets += [
        Target(f"{label}: round trips", round(counted[label]["trips"], 1), limit, unit="")
        for label, limit in {"a hit": 1, **ROUND_TRIPS}.items()
    ]


def commands_of(counted: Mapping[str, Any]) -> str:
    """What every call sends; what comes now and then, such as `TIME` once a second, is left out."""
    each = {name: round(times) for name, times in counted["commands"].items() if times >= 0.5}
    return ", ".join(f"{times}× `{name}`" if times > 1 else f"`{name}`" for name, times in each.items()) or "–"


# --- one tag of many entries


def measure_dependents(run: Run, report: Report) -> None:
    worker = run.redis_worker("asynctag", LOOPS[0])
    sizes = list(SIZES) if not run.quick else [size // 10 or 1 for size in SIZES]
    found: dict[int, list[float]] = {size: [] for size in sizes}
    rounds = run.pick(3, 2)
    for number in range(rounds):
        step(f"redis: tags of {', '.join(f'{size:,}' for size in sizes)} entries, round {number + 1} of {rounds}")
        for size, took in worker.ask("dependents", sizes=sizes, number=number).items():
            found[int(size)] += took
    times = {size: median(took) for size, took in found.items()}
    report.tables.append(
        Table(
            ["an invalidation, by how many entries carry the tag", *(f"{size:,}" for size in sizes)],
            [["asynctag", *(duration(time) for time in times.values())]],
        )
    )
    report.targets.append(
        Target(f"{sizes[-1]:,} dependents, to one (the same, within noise)", times[sizes[-1]] / times[sizes[0]], 2)
    )


# --- larger bodies


def measure_bodies(run: Run, report: Report) -> None:
    worker = run.redis_worker("asynctag", LOOPS[0])
    rows: list[list[str]] = []
    for size in BODIES:
        step(f"redis: a text of {size:,} bytes")
        stored = worker.ask("sized_bytes", size=size)
        for callers, n in ((1, 40), (CALLERS, 200)):
            series = in_turn(
                {
                    label: asking(worker, command, size=size, n=n, callers=callers)
                    for label, command in BODY_READS.items()
                },
                run.pick(15, 3),
            )["seconds"]
            times = [middle(series, label) for label in BODY_READS]
            rows.append(
                [
                    f"{size // 1_024} KB, {'one caller' if callers == 1 else f'{callers} callers'}",
                    f"{stored:,}",
                    *(duration(time) if callers == 1 else f"{1 / time:,.0f} a second" for time in times),
                ]
            )
    report.tables.append(Table(["a text", "bytes in Redis", *BODY_READS], rows))
    report.notes.append(
        "Texts of random words compress to a half or a third; from 4 KB on asynctag stores them compressed (zstd)."
    )
