"""Requests a second under uvicorn, each server in turn, as a share of what a bare ASGI callable reaches."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.environments import ENVIRONMENTS, ROOT, BenchmarkError, Worker, pin
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, duration, figure, percent, step
from benchmarks.rounds import turned
from benchmarks.subjects import Run

CONNECTIONS = 32
PATH = "/products/635"
CACHED = "computed"  # answers how often the route ran


@dataclass(frozen=True, slots=True)
class Contender:
    label: str
    library: str
    module: str
    cached: bool = False


BARE = "bare ASGI callable"
STARLETTE = "Starlette, uncached, bytes"
READY = "ready bytes, FastAPI middleware"
AROUND = "asynctag, public, around FastAPI"
PUBLIC = "asynctag, public, Starlette"
PUBLIC_PLAIN = "asynctag, public, telemetry off"
PUBLIC_FASTAPI = "asynctag, public, FastAPI"
DICTS = ("cashews, FastAPI, dict", "fastapi-cache2, FastAPI, dict")
CONTENDERS = [
    Contender(BARE, "asynctag", "bare"),
    Contender("bare, with a hit's six headers", "asynctag", "bare_headers"),
    Contender(READY, "asynctag", "fastapi_ready"),
    Contender(AROUND, "asynctag", "asynctag_around", True),
    Contender(PUBLIC, "asynctag", "asynctag_starlette", True),
    Contender(PUBLIC_PLAIN, "asynctag", "asynctag_fastapi_plain", True),
    Contender(PUBLIC_FASTAPI, "asynctag", "asynctag_fastapi", True),
    Contender("asynctag, at the endpoint, FastAPI", "asynctag", "asynctag_endpoint", True),
    Contender(STARLETTE, "asynctag", "starlette_uncached"),
    Contender("FastAPI, uncached, model", "asynctag", "fastapi_uncached"),
    Contender("FastAPI, uncached, dict", "asynctag", "fastapi_uncached_dict"),
    Contender("cashews, FastAPI, model", "cashews", "cashews_fastapi", True),
    Contender("cashews, FastAPI, dict", "cashews", "cashews_fastapi_dict", True),
    Contender("fastapi-cache2, FastAPI, model", "fastapi-cache2", "fastapi_cache2_fastapi", True),
    Contender("fastapi-cache2, FastAPI, dict", "fastapi-cache2", "fastapi_cache2_fastapi_dict", True),
]


def run(run: Run) -> Report:
    report = Report("http", "A cached response of 1 KB over HTTP")
    ports: dict[str, int] = {}
    pids: dict[str, int] = {}
    for one in CONTENDERS:
        step(f"http: starting {one.label}")
        port, pids[one.label] = run.stack.enter_context(
            server(ENVIRONMENTS[one.library].python, f"benchmarks.servers.{one.module}:app")
        )
        for _ in range(3):
            get(port, PATH)
        ports[one.label] = port
    load = run.stack.enter_context(Worker(Path(sys.executable), "benchmarks.workers.load", core=1))
    rates: dict[str, list[float]] = {label: [] for label in ports}
    costs: dict[str, list[float]] = {label: [] for label in ports}
    busy: list[float] = []
    computed = {one.label: get(ports[one.label], f"/{CACHED}") for one in CONTENDERS if one.cached}
    # Short rounds: the machine has not changed much between the first contender of one and the last.
    rounds, seconds = run.pick(25, 4), 0.4
    for number in range(rounds):
        step(f"http: round {number + 1} of {rounds}")
        for label in turned(list(ports), number):
            spent = processor_time(pids[label])
            answer = load.ask("run", port=ports[label], path=PATH, seconds=seconds, connections=CONNECTIONS)
            rates[label].append(answer["rate"])
            costs[label].append((processor_time(pids[label]) - spent) / answer["done"])
            if label == BARE:
                busy.append(answer["busy"])
    for label, before in computed.items():
        if get(ports[label], f"/{CACHED}") != before:
            raise BenchmarkError(f"{label}: the route ran while hits were measured")
    _tell(report, rates, costs, median(busy))
    return report


def _tell(report: Report, rates: dict[str, list[float]], costs: dict[str, list[float]], busy: float) -> None:
    def share(one: str, other: str) -> float:
        return median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    shares = {label: share(label, BARE) for label in rates}
    report.tables.append(
        Table(
            ["", "to the bare callable", "requests a second", "processor time of the server for one"],
            [
                [label, f"{shares[label]:.2f}", f"{median(rates[label]):,.0f}", duration(median(costs[label]))]
                for label in rates
            ],
        )
    )
    report.targets += [
        Target("public, around FastAPI: to the bare callable", shares[AROUND], 0.85, at_least=True),
        Target("public, around FastAPI: to an uncached Starlette route", share(AROUND, STARLETTE), 1, at_least=True),
        Target("public, in Starlette: to an uncached Starlette route", share(PUBLIC, STARLETTE), 1, at_least=True),
        *(
            Target(f"public, around FastAPI: to {label}", share(AROUND, label), 6, at_least=True)
            for label in rates
            if label in DICTS
        ),
    ]
    report.notes.append(
        f"The generator was busy for {percent(busy)} of its time against the bare callable"
        + (": it may have held the fastest back." if busy > 0.9 else ": it held nobody back.")
    )
    report.plots.append(
        Plot(
            "http",
            report.title,
            "Requests a second as a share of a bare ASGI callable's, more is better",
            [
                (
                    "",
                    [
                        Bar(label, value, figure(value), label.startswith("asynctag"))
                        for label, value in sorted(shares.items(), key=lambda item: -item[1])
                    ],
                )
            ],
        )
    )


@contextmanager
def server(python: Path, app: str) -> Iterator[tuple[int, int]]:
    """One process of uvicorn on a free port of the loopback, stopped at the end: its port and its process id."""
    port = free_port()
    settings = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [str(python), "-m", "uvicorn", app, "--port", str(port), *settings],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "WEB_CONCURRENCY"},
    )
    try:
        pin(process.pid, 0)
        deadline = time.monotonic() + 30
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{app} did not start: see what it wrote above")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used, as far as the system says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def get(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            body: bytes = response.read()
            return body
    except urllib.error.URLError as error:
        raise BenchmarkError(f"{path}: {error}") from error
