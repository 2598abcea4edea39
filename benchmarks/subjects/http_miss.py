"""What a miss adds to a Starlette route that returns 1 KB: for URLs that nobody asked for before, and for one that many
have asked for without anything being stored of it."""

from statistics import median

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure
from benchmarks.subjects import Run
from benchmarks.subjects.http import Contender, Found, how_busy, measure

PATH, ONE_PATH = "/products/{}", "/products/635"
STORED = "asynctag; fwd=uri-miss; stored"


def contender(label: str, app: str, status: str = "") -> Contender:
    return Contender(label, "asynctag", "miss", app=app, status=status)


PLAIN = contender("no middleware", "plain")
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
CONTENDERS = [
    PLAIN,
    contender("no middleware: no-store", "plain_refusing"),
    Contender("no middleware: three headers of a miss", "asynctag", "miss", app="plain_with_three"),
    contender("a pure ASGI middleware that does nothing", "no_op"),
    contender("a BaseHTTPMiddleware that does nothing", "base_http"),
    *NOT_STORED,
    *KEPT,
]
MOST_NOT_STORED, MOST_STORED = 1.15, 1.4


def run(run: Run) -> Report:
    report = Report("http-miss", "What a miss adds to a route of 1 KB over HTTP")
    found = measure(report.name, CONTENDERS, run.pick(17, 4), path=PATH, base=PLAIN.label)
    again = measure(report.name, [PLAIN, *NOT_STORED], run.pick(17, 4), path=ONE_PATH, base=PLAIN.label)
    times = {label: times_the_base(found, label) for label in found.rates}
    times |= {f"{one.label}{AGAIN}": times_the_base(again, one.label) for one in NOT_STORED}
    report.tables.append(
        Table(
            [
                "each request a miss",
                "requests a second, to no middleware",
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
                    "" if name == PLAIN.label else duration(added(one, name)),
                ]
                for label in times
                for name, one in [(label.removesuffix(AGAIN), again if label.endswith(AGAIN) else found)]
            ],
        )
    )
    report.targets += [
        Target(f"{one.label}: time of a request, to no middleware", times[one.label], most)
        for some, most in ((NOT_STORED, MOST_NOT_STORED), (KEPT, MOST_STORED))
        for one in some
    ]
    report.targets += [
        Target(
            f"{one.label}{AGAIN}: time of a request, to no middleware", times[f"{one.label}{AGAIN}"], MOST_NOT_STORED
        )
        for one in NOT_STORED
    ]
    report.notes.append(how_busy(found, PLAIN.label))
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Time of a request in times that without any middleware, less is better",
            [
                (
                    "",
                    [
                        Bar(label, value, f"{figure(value)}×", label.startswith("asynctag"))
                        for label, value in sorted(times.items(), key=lambda item: item[1])
                    ],
                )
            ],
        )
    )
    return report


def times_the_base(found: Found, label: str) -> float:
    """The time of a request in times the base's: the median over the rounds of what each round gave."""
    return median(base / rate for base, rate in zip(found.rates[PLAIN.label], found.rates[label], strict=True))


def added(found: Found, label: str) -> float:
    """The processor time that a request takes beyond the base's, in seconds, taken within each round."""
    return max(
        0.0,
        median(cost - base for cost, base in zip(found.costs[label], found.costs[PLAIN.label], strict=True)),
    )
