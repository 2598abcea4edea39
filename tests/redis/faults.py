"""What servers refuse, brought about on real ones: each fault lasts as long as its block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

from redis import Redis
from redis.exceptions import RedisError

from tests.redis.servers import PATIENCE, Server, eventually

NewServer = Callable[..., Server]

#: All that a fault may refuse.
READ, STORE, INVALIDATE = "read", "store", "invalidate"
EVERYTHING = frozenset({READ, STORE, INVALIDATE})


@dataclass(frozen=True)
class Fault:
    """`says`: what callers are told; `keeps`: whether the connection stays; `config`: of a server that can have it."""

    during: Callable[[Server, NewServer], AbstractContextManager[None]]
    says: str
    refuses: frozenset[str] = EVERYTHING
    keeps: bool = False
    config: dict[str, str] = field(default_factory=dict)
    #: Whom the backend is to come as.
    user: str = ""
    #: In seconds: short where nothing is to be answered.
    timeout: float = 10.0


def _refused(server: Server, word: str) -> bool:
    try:
        server.run("PING")
    except RedisError as error:
        return word in str(error)
    return False


@contextmanager
def _set(server: Server, name: str, value: str) -> Iterator[None]:
    before = server.run("CONFIG", "GET", name)[name.encode()]
    server.run("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        server.run("CONFIG", "SET", name, before)


@contextmanager
def asked_by_another(server: Server, *command: str) -> Iterator[None]:
    """A command that keeps the server busy is sent by somebody else; its answer is waited for at the end."""

    def ask() -> None:
        with Redis(*server.address, socket_timeout=None) as client:
            with suppress(RedisError):  # it is ended by force
                client.execute_command(*command)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)


def fill(server: Server, keys: int = 50_000) -> None:
    """Put in so many keys, which take a server some time to load that is told to be slow."""
    server.run("EVAL", "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'filler:' .. i, i) end", 0, keys)


def load_slowly(server: Server, microseconds: int) -> None:
    """Take so long for each key, answering others in between."""
    server.run("CONFIG", "SET", "key-load-delay", microseconds, "loading-process-events-interval-bytes", 1024)


@contextmanager
def loading(server: Server, _: NewServer) -> Iterator[None]:
    fill(server)
    load_slowly(server, 100)
    with asked_by_another(server, "DEBUG", "RELOAD"):
        eventually("LOADING", lambda: _refused(server, "loading"))
        try:
            yield
        finally:
            load_slowly(server, 0)
    eventually("the end of it", lambda: server.run("PING"))


@contextmanager
def busy(server: Server, _: NewServer) -> Iterator[None]:
    with _set(server, "busy-reply-threshold", "20"), asked_by_another(server, "EVAL", "while true do end", "0"):
        eventually("BUSY", lambda: _refused(server, "busy"))
        try:
            yield
        finally:
            server.run("SCRIPT", "KILL")


@contextmanager
def demoted(server: Server, new_server: NewServer) -> Iterator[None]:
    other = new_server()
    other.replicate(server)
    other.promote()
    server.replicate(other)
    try:
        yield
    finally:
        server.promote()


@contextmanager
def without_replicas(server: Server, _: NewServer) -> Iterator[None]:
    with _set(server, "min-replicas-to-write", "1"):
        yield


@contextmanager
def full(server: Server, _: NewServer) -> Iterator[None]:
    with _set(server, "maxmemory", "1"):
        yield


@contextmanager
def disk_full(server: Server, _: NewServer) -> Iterator[None]:
    """It cannot save: there is a folder in the place of its file."""
    place = server.folder / "dump.rdb"
    place.mkdir()
    with _set(server, "save", "3600 1"):
        server.run("BGSAVE")
        eventually("a failure to save", lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
        yield
    place.rmdir()


@contextmanager
def password_set(server: Server, _: NewServer) -> Iterator[None]:
    """Connections that are there stay, so they are ended; the server's own one is not."""
    with _set(server, "requirepass", "another"):
        server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield


@contextmanager
def forbidden(server: Server, _: NewServer) -> Iterator[None]:
    server.run("ACL", "SETUSER", "application", "-evalsha", "-getex")
    try:
        yield
    finally:
        server.run("ACL", "SETUSER", "application", "+evalsha", "+getex")


@contextmanager
def user_deleted(server: Server, _: NewServer) -> Iterator[None]:
    """Which ends its connections."""
    server.run("ACL", "DELUSER", "application")
    try:
        yield
    finally:
        add_user(server)


def add_user(server: Server) -> None:
    server.run("ACL", "SETUSER", "application", "on", ">secret", "~*", "&*", "+@all")


@contextmanager
def down(server: Server, _: NewServer) -> Iterator[None]:
    server.run("SAVE")
    server.kill()
    try:
        yield
    finally:
        server.launch()


@contextmanager
def paused(server: Server, _: NewServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


APPLICATION = "application:secret@"

FAULTS = {
    "LOADING": Fault(loading, r"LOADING", config={"enable_debug_command": "yes"}),
    "BUSY": Fault(busy, r"BUSY"),
    "READONLY": Fault(demoted, r"read-only replica"),
    "NOREPLICAS": Fault(without_replicas, r"fewer replicas.*min-replicas-to-write", keeps=True),
    "OOM": Fault(full, r"full.*maxmemory-policy", frozenset({STORE}), keeps=True),
    "MISCONF": Fault(disk_full, r"cannot save", keeps=True),
    "NOAUTH": Fault(password_set, r"no connection to .*(AUTH|password)"),
    "WRONGPASS": Fault(password_set, r"no connection to .*password", config={"requirepass": "secret"}),
    "NOPERM": Fault(forbidden, r"ACL forbids", keeps=True, user=APPLICATION),
    "a user deleted": Fault(user_deleted, r"no connection to .*password", user=APPLICATION),
    "killed": Fault(down, r"no connection to .* Connect call failed"),
    "halted": Fault(paused, r"did not reply within 0.1 s|no connection to .* within 0.1 s", timeout=0.1),
}
