"""An invalidation of one tag, by how many entries carry it."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, step
from benchmarks.rounds import Series
from benchmarks.subjects import Run

LIBRARIES = {"asynctag": 1_000_000, "cashews": 10_000}
"""With the most dependents that each can be filled with in a sensible time."""


def run(run: Run) -> Report:
    report = Report("invalidate", "Invalidating one tag")
    sizes = {1: 41, 1_000: 15, 10_000: 5, 100_000: 5} if not run.quick else {1: 11, 1_000: 5, 10_000: 3}
    found: dict[str, Series] = {name: {} for name in LIBRARIES}
    for dependents, rounds in sizes.items():
        step(f"invalidate: {dependents:,} dependents")
        for _ in range(rounds):
            for name, most in LIBRARIES.items():
                if dependents <= most:
                    took = run.worker(name).ask("invalidation", dependents=dependents)
                    found[name].setdefault(f"{dependents:,}", []).append(took)
    columns = [f"{dependents:,}" for dependents in sizes]
    report.tables.append(
        Table(
            ["time of an invalidation, by dependents", *columns],
            [[name, *(time_of(found[name].get(column)) for column in columns)] for name in LIBRARIES],
        )
    )
    ours = {column: median(times) for column, times in found["asynctag"].items()}
    report.targets.append(
        Target(f"{columns[-1]} dependents, to one (the same, within noise)", ours[columns[-1]] / ours[columns[0]], 2)
    )
    report.plots.append(
        Plot(
            "invalidate",
            report.title,
            "Time, by how many entries carry the tag, less is better",
            [
                (
                    f"{column} dependents",
                    [
                        Bar(name, time := median(found[name][column]), duration(time), name == "asynctag")
                        for name in LIBRARIES
                        if column in found[name]
                    ],
                )
                for column in columns
            ],
            log=True,
        )
    )
    report.notes.append(
        "cashews copies a tag's set of keys on every store and removal that touches it: storing and invalidating "
        "100,000 dependents was not done after nine minutes, and is left out."
    )
    return report


def time_of(times: list[float] | None) -> str:
    return duration(median(times)) if times else "–"
