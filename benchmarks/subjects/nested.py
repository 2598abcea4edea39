"""A hit inside a cached computation, which hands its tags up, beside one outside."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure, step
from benchmarks.rounds import interleave, ratio
from benchmarks.subjects import Run


def run(run: Run) -> Report:
    step("nested: hits inside and outside of a computation")
    outside, inside = "outside", "inside a computation"
    series = interleave(
        {outside: run.timed("asynctag", "hit", payload="str"), inside: run.timed("asynctag", "nested")},
        run.pick(31, 7),
    )
    report = Report("nested", "A hit inside a cached computation")
    found = ratio(series, inside, outside)
    report.tables.append(
        Table(
            ["a hit", "time", "to one outside"],
            [
                [outside, duration(median(series[outside])), "1×"],
                [inside, duration(median(series[inside])), f"{figure(found)}×"],
            ],
        )
    )
    report.targets.append(Target("a hit inside, to a hit outside", found, 2))
    report.plots.append(
        Plot(
            "nested",
            report.title,
            "Time a hit of a str, less is better",
            [("", [Bar(name, median(times), duration(median(times)), True) for name, times in series.items()])],
        )
    )
    return report
