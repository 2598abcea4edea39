"""An environment for each library under `.bench`, with its newest version, and workers that run in them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench"
DAY = 86_400

_SERVER = ("uvicorn", "uvloop", "httptools", "fastapi")


class BenchmarkError(Exception):
    """A benchmark that could not be run, and why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed for a library, and the module that is its worker."""

    library: str
    packages: tuple[str, ...]
    worker: str

    @property
    def python(self) -> Path:
        return FOLDER / self.library / ("Scripts" if os.name == "nt" else "bin") / "python"

    @property
    def version(self) -> str:
        """The version that is installed."""
        code = f"import importlib.metadata as m; print(m.version({self.library!r}))"
        return _run([self.python, "-c", code]).strip()

    def ready(self, fresh: bool = False) -> bool:
        """Make or update it where that is due: once a day, and for `fresh`. Whether anything was done."""
        stamp = FOLDER / self.library / ".ready"
        wanted = " ".join(self.packages)
        settings = ROOT / "pyproject.toml"
        if not fresh and stamp.exists() and stamp.read_text() == wanted:
            made = stamp.stat().st_mtime
            if time.time() - made < DAY and (self.library != "asynctag" or made > settings.stat().st_mtime):
                return False
        if not self.python.exists():
            _run([sys.executable, "-m", "venv", FOLDER / self.library])
        _run([self.python, "-m", "pip", "install", "--quiet", "--upgrade", *self.packages])
        stamp.write_text(wanted)
        return True


ENVIRONMENTS = {
    one.library: one
    for one in (
        Environment(
            "asynctag",
            ("--editable", ".[fastapi]", "asyncpg", "jinja2", *_SERVER),
            "benchmarks.workers.with_asynctag",
        ),
        Environment(
            "cashews", ("cashews[redis]", "hiredis", "pydantic", "asyncpg", *_SERVER), "benchmarks.workers.with_cashews"
        ),
        Environment("async-cache", ("async-cache", "pydantic"), "benchmarks.workers.with_async_cache"),
        Environment("aiocache", ("aiocache[redis]", "hiredis", "pydantic"), "benchmarks.workers.with_aiocache"),
        # It imports Starlette's templates without asking for jinja2.
        Environment(
            "fastapi-cache2",
            ("fastapi-cache2", "jinja2", "pydantic", *_SERVER),
            "benchmarks.workers.with_fastapi_cache2",
        ),
    )
}


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


class Worker:
    """A process that answers one line of JSON with another."""

    def __init__(self, python: Path, module: str, *arguments: str, core: int | None = None) -> None:
        self.module = module
        self._process = subprocess.Popen(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks: IO[str] = self._process.stdin
        self._answers: IO[str] = self._process.stdout
        pin(self._process.pid, core)

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to `command`. Raises `BenchmarkError` where the worker failed."""
        try:
            self._asks.write(json.dumps({"ask": command} | arguments) + "\n")
            self._asks.flush()
        except OSError:
            raise BenchmarkError(f"{self.module} has ended: see what it wrote above") from None
        line = self._answers.readline()
        if not line:
            raise BenchmarkError(f"{self.module} has ended: see what it wrote above")
        answer: Mapping[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.module}: {command} failed: {answer['error']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._asks.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


def worker_of(library: str) -> Worker:
    environment = ENVIRONMENTS[library]
    return Worker(environment.python, environment.worker)


def redis_worker_of(library: str, url: str, *settings: str) -> Worker:
    """One that keeps its entries in the database at `url`."""
    module = f"benchmarks.workers.redis_{library.replace('-', '_')}"
    return Worker(ENVIRONMENTS[library].python, module, url, *settings)


def pin(pid: int, core: int | None) -> None:
    """Keep a process on one core, where the system can and has it."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        if core < len(available) > 1:
            os.sched_setaffinity(pid, {available[core]})
