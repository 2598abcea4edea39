"""Random readers and writers: reads that give data from before an invalidation that was acknowledged before them."""

from collections.abc import Mapping

from benchmarks.environments import Worker
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, percent, step
from benchmarks.subjects import Run

LIBRARIES = ("asynctag", "cashews")


def run(run: Run) -> Report:
    report = Report("races", "Reads older than an acknowledged invalidation")
    workers = {name: run.worker(name) for name in LIBRARIES}
    tell(report, measure(report.name, workers, reads=run.pick(20_000, 5_000), seeds=run.pick(10, 2)))
    return report


def measure(subject: str, workers: Mapping[str, Worker], *, reads: int, seeds: int) -> dict[str, tuple[int, int]]:
    """How many reads each worker did, and how many of them were stale."""
    found = dict.fromkeys(workers, (0, 0))
    for seed in range(seeds):
        step(f"{subject}: {seed + 1} of {seeds}")
        for name, worker in workers.items():
            answer = worker.ask("races", reads=reads, seed=seed)
            done, stale = found[name]
            found[name] = done + answer["reads"], stale + answer["stale"]
    return found


def tell(report: Report, found: Mapping[str, tuple[int, int]]) -> None:
    share = {name: stale / done for name, (done, stale) in found.items()}
    report.tables.append(
        Table(
            ["", "reads", "stale", "share"],
            [[name, f"{done:,}", f"{stale:,}", percent(share[name], 2)] for name, (done, stale) in found.items()],
        )
    )
    report.targets.append(Target("stale reads", found["asynctag"][1], 0, unit=""))
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Share of reads, less is better",
            [("", [Bar(name, one, percent(one, 2), name == "asynctag") for name, one in share.items()])],
        )
    )
