"""A hit on a decorated function with two tags, beside a bare `await` and beside the hits of others."""

from statistics import median
from typing import Any

from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure, step
from benchmarks.rounds import Series, interleave, ratio
from benchmarks.subjects import NAMES, Run

PAYLOADS = {"str": 15.0, "dict": 30.0, "nested dict": 30.0, "model": 60.0, "nested model": 60.0}
"""The payloads, and how many times a bare `await` a hit may take."""

LABELS = {"bare": "bare await"}


def run(run: Run) -> Report:
    report = Report("hit", "A hit on a decorated function, memory, 1 KB")
    rounds = run.pick(21, 5)
    rows: list[list[str]] = []
    groups: list[tuple[str, list[Bar]]] = []
    for payload, limit in PAYLOADS.items():
        step(f"hit: {payload}")
        contenders = {"bare": run.timed("asynctag", "bare", payload=payload)}
        contenders |= {name: run.timed(name, "hit", payload=payload) for name in NAMES}
        promises = {name: run.worker(name).ask("promise", payload=payload) for name in NAMES}
        series = interleave(contenders, rounds, aim=0.04 if not run.quick else 0.02)
        rows.append([f"`{payload}`", *(cell(series, name, promises.get(name)) for name in series)])
        groups.append((payload, bars(series)))
        report.targets.append(Target(f"`{payload}`: a hit to a bare await", ratio(series, "asynctag", "bare"), limit))
        if payload == "str":
            report.targets += [
                Target("`str`: to cashews with the same tags", ratio(series, "asynctag", "cashews"), 1 / 5),
                Target("`str`: to async-cache without tags", ratio(series, "asynctag", "async-cache"), 1 / 2),
            ]
        if not promises["asynctag"]["isolated"] or not promises["asynctag"]["same"]:
            raise AssertionError(f"asynctag gave a {payload} that is another, or is shared")
    step("hit: after an invalidation of some other tag")
    after = interleave(
        {"hit": run.timed("asynctag", "hit", payload="str"), "recheck": run.timed("asynctag", "recheck")}, rounds
    )
    headers = ["a hit, in times a bare await", *(LABELS.get(name, name) for name in ["bare", *NAMES])]
    report.tables.append(Table(headers, rows))
    report.notes += [
        "† the caller gets the very object that is cached: a change by one is seen by all.",
        f"The first hit after an invalidation of some other tag looks its own tags up again: "
        f"{figure(ratio(after, 'recheck', 'hit'))} times an ordinary hit.",
    ]
    report.plots.append(Plot("hit", "A hit, by what is cached", "Time a hit, less is better", groups, log=True))
    return report


def cell(series: Series, name: str, promise: Any) -> str:
    time = duration(median(series[name]))
    if name == "bare":
        return time
    mark = "" if promise["isolated"] else " †"
    return f"{figure(ratio(series, name, 'bare'))}× ({time}){mark}"


def bars(series: Series) -> list[Bar]:
    medians = {name: median(times) for name, times in series.items()}
    return [
        Bar(LABELS.get(name, name), time, duration(time), name == "asynctag")
        for name, time in sorted(medians.items(), key=lambda item: item[1])
    ]
