"""Random readers and writers: reads that give data from before an invalidation that was acknowledged before them."""

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, percent, step
from benchmarks.subjects import Run

LIBRARIES = ("asynctag", "cashews")


def run(run: Run) -> Report:
    report = Report("races", "Reads older than an acknowledged invalidation")
    reads, seeds = run.pick(20_000, 5_000), run.pick(10, 2)
    done = dict.fromkeys(LIBRARIES, 0)
    stale = dict.fromkeys(LIBRARIES, 0)
    for seed in range(seeds):
        step(f"races: {seed + 1} of {seeds}")
        for name in LIBRARIES:
            answer = run.worker(name).ask("races", reads=reads, seed=seed)
            done[name] += answer["reads"]
            stale[name] += answer["stale"]
    share = {name: stale[name] / done[name] for name in LIBRARIES}
    report.tables.append(
        Table(
            ["", "reads", "stale", "share"],
            [[name, f"{done[name]:,}", f"{stale[name]:,}", percent(share[name], 2)] for name in LIBRARIES],
        )
    )
    report.targets.append(Target("stale reads", stale["asynctag"], 0, unit=""))
    report.plots.append(
        Plot(
            "races",
            report.title,
            "Share of reads, less is better",
            [
                (
                    "",
                    [Bar(name, share[name], percent(share[name], 2), name == "asynctag") for name in LIBRARIES],
                )
            ],
        )
    )
    return report
