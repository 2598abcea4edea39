"""The races of `races`, on Redis."""

from benchmarks.report import Report
from benchmarks.subjects import Run
from benchmarks.subjects.races import measure, tell

CONTENDERS = {"asynctag": (), "cashews": (), "cashews, client-side": ("client-side",)}


def run(run: Run) -> Report:
    report = Report("redis-races", "Reads from Redis older than an acknowledged invalidation")
    workers = {
        label: run.redis_worker(label.partition(",")[0], "asyncio", *settings) for label, settings in CONTENDERS.items()
    }
    tell(report, measure(report.name, workers, reads=run.pick(5_000, 2_000), seeds=run.pick(6, 2)))
    return report
