"""What an entry with two tags takes beyond its text, in a process that does nothing else."""

from benchmarks.environments import worker_of
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, step
from benchmarks.subjects import NAMES, Run

GROUPS = 1_000


def run(run: Run) -> Report:
    entries = run.pick(100_000, 20_000)
    report = Report("memory", f"Memory of an entry: {entries:,} entries, one tag of its own and one of {GROUPS:,} each")
    found: dict[str, dict[bool, float]] = {}
    for name in NAMES:
        step(f"memory: {name}")
        found[name] = {}
        for traced in (True, False):
            with worker_of(name) as worker:
                found[name][traced] = worker.ask("memory", entries=entries, groups=GROUPS, traced=traced)
    report.tables.append(
        Table(
            ["bytes an entry, beyond its text", "allocated (tracemalloc)", "resident"],
            [[name, f"{found[name][True]:,.0f}", f"{found[name][False]:,.0f}"] for name in NAMES],
        )
    )
    report.targets += [
        Target("allocated", found["asynctag"][True], 700, unit=" bytes"),
        Target("resident", found["asynctag"][False], 700, unit=" bytes"),
    ]
    report.plots.append(
        Plot(
            "memory",
            "Memory of an entry, beyond what is cached",
            "Resident bytes, less is better; only asynctag and cashews keep tags",
            [("", [Bar(name, found[name][False], f"{found[name][False]:,.0f}", name == "asynctag") for name in NAMES])],
        )
    )
    return report
