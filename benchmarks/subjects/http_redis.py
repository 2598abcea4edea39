"""Requests a second where a hit comes from Redis, as a share of what a bare ASGI callable reaches."""

from benchmarks.processes import valkey
from benchmarks.report import Report, Target, figure
from benchmarks.subjects import Run
from benchmarks.subjects.http import BARE, Contender, measure, tell

GET = "bare callable, redis-py's GET"
MIDDLEWARE = "asynctag on Redis, bare app"
AROUND = "asynctag on Redis, FastAPI"
CONTENDERS = [
    Contender(BARE, "asynctag", "bare"),
    Contender("bare, with a hit's six headers", "asynctag", "bare_headers"),
    Contender(GET, "asynctag", "redis_get", redis=True),
    Contender("bare callable, a cached function", "asynctag", "redis_function", redis=True),
    Contender(MIDDLEWARE, "asynctag", "redis_asynctag_bare", cached=True, redis=True),
    Contender(AROUND, "asynctag", "redis_asynctag_around", cached=True, redis=True),
    Contender("asynctag in memory, bare app", "asynctag", "asynctag_bare", cached=True),
]


def run(run: Run) -> Report:
    report = Report("http-redis", "A response of 1 KB from Redis, over HTTP")
    with valkey(core=1) as url:  # as the generator: the other is the application's
        found = measure(report.name, CONTENDERS, run.pick(17, 4), url)
    tell(report, found)
    report.targets += [
        Target(f"{label}: to the bare callable", found.share(label, BARE), 0.6, at_least=True)
        for label in (MIDDLEWARE, AROUND)
    ]
    told = ", ".join(f"{label}: {figure(trips)}" for label, trips in found.trips.items())
    report.notes.append(f"Round trips to Redis for a request, as the server counts them: {told}.")
    return report
