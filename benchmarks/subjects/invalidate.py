"""An invalidation of one tag, by how many entries carry it."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, step
from benchmarks.rounds import Series
from benchmarks.subjects import Run

LIBRARIES = ("asynctag", "cashews")


def run(run: Run) -> Report:
    report = Report("invalidate", "Invalidating one tag")
    sizes = {1: 41, 1_000: 15, 100_000: 5} if not run.quick else {1: 11, 1_000: 5, 10_000: 3}
    found: dict[str, Series] = {name: {} for name in LIBRARIES}
    for dependents, rounds in sizes.items():
        step(f"invalidate: {dependents:,} dependents")
        for number in range(rounds):
            for name in LIBRARIES:
                if number and name != "asynctag" and dependents > 10_000:
                    continue  # a minute a round, for a figure that leaves no doubt
                took = run.worker(name).ask("invalidation", dependents=dependents)
                found[name].setdefault(f"{dependents:,}", []).append(took)
    columns = [f"{dependents:,}" for dependents in sizes]
    report.tables.append(
        Table(
            ["time of an invalidation, by dependents", *columns],
            [[name, *(duration(median(found[name][column])) for column in columns)] for name in LIBRARIES],
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
                    ],
                )
                for column in columns
            ],
            log=True,
        )
    )
    return report
