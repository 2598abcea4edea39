"""The share of hits on a trace, beside an LRU cache of the same size."""

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, percent, step
from benchmarks.subjects import Run
from benchmarks.traces import lru_ratio, with_scans, zipf

KEYS, SIZES, SCANS = 100_000, (1_000, 10_000), 0.3


def run(run: Run) -> Report:
    report = Report("ratio", f"Share of hits: Zipf 0.9 over {KEYS:,} keys")
    step("ratio: drawing the trace")
    plain = zipf(run.pick(500_000, 60_000), KEYS, 0.9)
    traces = {"Zipf": plain, f"Zipf and {percent(SCANS)} scans": with_scans(plain, SCANS)}
    rows: list[list[str]] = []
    groups: list[tuple[str, list[Bar]]] = []
    for title, trace in traces.items():
        for size in SIZES:
            step(f"ratio: {title}, {size:,} entries")
            ours, lru = run.worker("asynctag").ask("ratio", trace=trace, entries=size), lru_ratio(trace, size)
            where = f"{title}, {size:,} entries"
            rows.append([where, f"{ours:.3f}", f"{lru:.3f}"])
            groups.append((where, [Bar("asynctag", ours, f"{ours:.3f}", True), Bar("LRU", lru, f"{lru:.3f}")]))
            report.targets.append(Target(f"{where}: to LRU", ours / lru, 1, at_least=True))
    report.tables.append(Table(["share of hits", "asynctag", "LRU"], rows))
    report.plots.append(Plot("ratio", report.title, "Share of reads that are hits, more is better", groups))
    return report
