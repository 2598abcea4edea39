"""What a miss adds to a Starlette route that returns 1 KB: for URLs that nobody has asked for, for one that many have
asked for without anything being stored, and for one whose response is invalidated before each request."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure
from benchmarks.subjects import Run
from benchmarks.subjects.http import Contender, Found, how_busy, how_often, started

PATH, ONE_PATH = "/products/{}", "/products/635"
STORED = "asynctag; fwd=uri-miss; stored"
INVALIDATED = 'asynctag; fwd=stale; stored; detail="tag products"'


def contender(label: str, app: str, status: str | None = "", module: str = "miss") -> Contender:
    return Contender(label, "asynctag", module, app=app, status=status)


PLAIN = contender("no middleware", "plain")
REFUSING = contender("no middleware: no-store", "plain_refusing")
DECLARING = contender("no middleware: declared public", "plain_declaring")
NOT_STORED = [
    contender("asynctag: nothing said", "nothing_said"),
    contender("asynctag: no-store", "no_store"),
]
AGAIN = ", asked for before"
KEPT = [
    contender("asynctag: at the endpoint, stored", "endpoint", STORED),
    contender("asynctag: public=True, stored", "public", STORED),
    contender("asynctag: declared public, stored", "declared", STORED),
]
#: With what the invalidation takes, a few microseconds.
GONE = [contender(f"{one.label}, invalidated before", f"{one.app}_invalidated", INVALIDATED) for one in KEPT]
LEAST = contender("the least that gathers tags", "least", module="least")
LEAST_STORED = contender(
    "the least that stores: declared public", "least_stored", "least; fwd=uri-miss; stored", module="least"
)
FASTAPI = contender("FastAPI, a model: no middleware", "plain_fastapi")
ON_FASTAPI = [
    contender("FastAPI, a model: asynctag, nothing said", "fastapi_silent"),
    contender("FastAPI, a model: asynctag, at the endpoint, stored", "fastapi_endpoint", STORED),
]
#: The route that each is the same as, without any middleware, where that is not the plain one.
BASES = {
    NOT_STORED[1].label: REFUSING.label,
    KEPT[2].label: DECLARING.label,
    LEAST_STORED.label: DECLARING.label,
    GONE[2].label: DECLARING.label,
    **{one.label: FASTAPI.label for one in (FASTAPI, *ON_FASTAPI)},
}
CONTENDERS = [
    PLAIN,
    REFUSING,
    DECLARING,
    contender("no middleware: three headers of a miss", "plain_with_three", None),
    contender("a pure ASGI middleware that does nothing", "no_op"),
    contender("a BaseHTTPMiddleware that does nothing", "base_http"),
    LEAST,
    LEAST_STORED,
    *NOT_STORED,
    *KEPT,
    FASTAPI,
    *ON_FASTAPI,
]
MOST_NOT_STORED, MOST_STORED = 1.15, 1.4


def run(run: Run) -> Report:
    report = Report("http-miss", "What a miss adds to a route of 1 KB over HTTP")
    starts, rounds = run.pick(8, 1), run.pick(3, 4)
    found = started(report.name, CONTENDERS, starts, rounds, path=PATH, base=PLAIN.label)
    one_path = [PLAIN, REFUSING, DECLARING, *NOT_STORED, *GONE]
    again = started(report.name, one_path, starts, rounds, path=ONE_PATH, base=PLAIN.label)
    times = {label: times_the_base(found, label) for label in found.rates}
    times |= {f"{one.label}{AGAIN}": times_the_base(again, one.label) for one in NOT_STORED}
    times |= {one.label: times_the_base(again, one.label) for one in GONE}
    report.tables.append(
        Table(
            [
                "each request a miss",
                "requests a second, to the same route without middleware",
                "time of a request",
                "requests a second",
                "processor time of the server for one",
                "added",
            ],
            [
                [
                    label,
                    f"{1 / times[label]:.2f}",
                    f"{times[label]:.2f}×",
                    f"{median(one.rates[name]):,.0f}",
                    duration(median(one.costs[name])),
                    "" if name in (PLAIN.label, FASTAPI.label) else duration(added(one, name)),
                ]
                for label in times
                for name, one in [(label.removesuffix(AGAIN), found if label in found.rates else again)]
            ],
        )
    )
    report.targets += [
        Target(f"{label}: time of a request, to the same route without middleware", times[label], most)
        for some, most in ((NOT_STORED, MOST_NOT_STORED), (KEPT, MOST_STORED), (GONE, MOST_STORED))
        for label in [one.label for one in some] + [f"{one.label}{AGAIN}" for one in some if one in NOT_STORED]
    ]
    report.notes.append(how_busy(found, PLAIN.label) + how_often(starts))
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Time of a request in times that of the same route without middleware, less is better",
            [
                (
                    "",
                    [
                        Bar(label, value, f"{figure(value)}×", "asynctag" in label)
                        for label, value in sorted(times.items(), key=lambda item: item[1])
                    ],
                )
            ],
        )
    )
    return report


def times_the_base(found: Found, label: str) -> float:
    """The time of a request in times that of the same route without middleware: the median over the rounds of what each
    round gave."""
    base = found.rates[BASES.get(label, PLAIN.label)]
    return median(base / rate for base, rate in zip(base, found.rates[label], strict=True))


def added(found: Found, label: str) -> float:
    """The processor time that a request takes beyond its base's, in seconds, taken within each round."""
    base = found.costs[BASES.get(label, PLAIN.label)]
    return max(0.0, median(cost - base for cost, base in zip(found.costs[label], base, strict=True)))
