"""A miss with its store, and a thousand callers that miss one key at once."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure, step
from benchmarks.rounds import interleave, ratio
from benchmarks.subjects import NAMES, Run

CALLERS = 1_000


def run(run: Run) -> Report:
    report = Report("misses", "Misses")
    step("misses: new keys, stored")
    count = run.pick(2_000, 500)
    series = interleave({name: run.timed(name, "miss") for name in NAMES}, run.pick(15, 5), fixed=count)
    step(f"misses: {CALLERS:,} callers of one key")
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    computed: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(run.pick(15, 5)):
        for name in NAMES:
            answer = run.worker(name).ask("stampede", n=CALLERS)
            seconds[name].append(answer["seconds"])
            computed[name].append(answer["computed"])
    report.tables.append(
        Table(
            ["", "a miss, stored", "to asynctag", f"{CALLERS:,} callers: computations", "time in all"],
            [
                [
                    name,
                    duration(median(series[name])),
                    f"{figure(ratio(series, name, 'asynctag'))}×",
                    f"{max(computed[name]):,.0f}",
                    duration(median(seconds[name])),
                ]
                for name in NAMES
            ],
        )
    )
    report.targets.append(Target("computations for 1,000 callers at once", max(computed["asynctag"]), 1, unit=""))
    report.plots.append(
        Plot(
            "misses",
            "A miss of a trivial computation, stored",
            "Time a miss, less is better; asynctag and cashews store two tags",
            [("", [Bar(name, time := median(series[name]), duration(time), name == "asynctag") for name in NAMES])],
        )
    )
    return report
