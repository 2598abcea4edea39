"""The servers that tests run on do what they are told: see `servers.py`."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as Unreachable

from tests.redis.servers import Process, Sentinel, Server, ServerError, eventually

NewServer = Callable[..., Server]


def test_a_server_answers(redis_server: Server) -> None:
    """It is ready when the fixture is, and replies come as they are."""
    assert redis_server.run("SET", "key", b"\xff") == b"OK"
    assert redis_server.run("GET", "key") == b"\xff"
    assert redis_server.run("CONFIG", "GET", "appendonly") == {b"appendonly": b"no"}
    assert redis_server.info("server")["tcp_port"] == str(redis_server.port)


@pytest.mark.parametrize("turn", ["first", "second"])
def test_nothing_is_left_of_the_test_before(redis_server: Server, turn: str) -> None:
    """Each finds what the other would have changed: data, scripts, configuration, statistics."""
    assert redis_server.run("DBSIZE") == 0
    assert redis_server.run("SCRIPT", "EXISTS", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db") == [0]
    assert redis_server.run("CONFIG", "GET", "maxmemory") == {b"maxmemory": b"0"}
    assert "cmdstat_set" not in redis_server.info("commandstats")
    redis_server.run("SET", turn, 1)
    redis_server.run("SCRIPT", "LOAD", "return 1")
    redis_server.run("CONFIG", "SET", "maxmemory", "10mb", "maxmemory-policy", "allkeys-lru")
    redis_server.run("CLIENT", "PAUSE", 60_000, "WRITE")


def test_a_configuration_of_its_own(new_server: NewServer) -> None:
    """Names with underscores, values that are empty or have several words, a password."""
    server = new_server(
        maxmemory_policy="allkeys-lru", save="60 1000", notify_keyspace_events="", requirepass="s:c/r@et"
    )
    for name, value in {"maxmemory-policy": b"allkeys-lru", "save": b"60 1000", "notify-keyspace-events": b""}.items():
        assert server.run("CONFIG", "GET", name) == {name.encode(): value}


@pytest.mark.parametrize("config", [{"maxmemory": "lots"}, {"no_such_setting": "1"}, {"dir": "/no/such/folder"}])
def test_why_it_did_not_start_is_told(new_server: NewServer, config: dict[str, str]) -> None:
    """With the words of the server."""
    [(name, value)] = config.items()
    with pytest.raises(ServerError, match=rf"(?s){name.replace('_', '-')}.*{value}"):
        new_server(**config)


def test_a_port_that_is_taken_is_not_used(new_server: NewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is tried, and the server that answers at the first is not mistaken for the new one."""
    one = new_server()
    chosen, choose = [one.port, one.port], secrets.choice
    monkeypatch.setattr("secrets.choice", lambda ports: chosen.pop() if chosen else choose(ports))
    assert new_server().port != one.port
    assert not chosen
    assert one.running


def test_a_killed_server_is_gone(new_server: NewServer) -> None:
    """At once, and its data with it; the same port and folder are there for the next start."""
    server = new_server()
    port = server.port
    server.run("SET", "key", 1)
    server.kill()
    assert not server.running
    with pytest.raises(Unreachable):
        server.run("PING")
    server.restart()
    assert server.port == port
    assert server.run("GET", "key") is None


@pytest.mark.parametrize("end", [Process.kill, Process.stop, Process.pause])
def test_a_restart_loads_what_was_saved(new_server: NewServer, end: Callable[[Process], None]) -> None:
    """However the server ended, and if it has not."""
    server = new_server()
    server.run("SET", "key", "saved")
    server.run("SAVE")
    server.run("SET", "key", "lost")
    end(server)
    server.restart()
    assert server.run("GET", "key") == b"saved"


def test_a_stopped_server_says_goodbye(new_server: NewServer) -> None:
    """It ends by itself, even if it was paused."""
    server = new_server()
    server.pause()
    server.stop()
    assert server.process.returncode == 0
    assert "SIGTERM" in server.log()


def test_a_paused_server_does_not_answer(new_server: NewServer) -> None:
    """Connections are made all the same, and what arrives meanwhile is answered when it goes on."""
    server = new_server()
    server.pause()
    server.pause()
    with socket.create_connection(server.address, timeout=0.05) as connection:
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        server.resume()
        connection.settimeout(5)
        assert connection.recv(100) == b"+PONG\r\n"


def test_a_unix_socket(unix_server: Server) -> None:
    """Its path is short enough, there is no port, and nothing is left of it."""
    assert unix_server.socket
    assert unix_server.url == f"unix://{unix_server.socket}"
    assert len(os.fsencode(unix_server.socket)) <= 103
    assert unix_server.run("CONFIG", "GET", "port") == {b"port": b"0"}
    unix_server.restart()
    assert unix_server.run("PING") == b"PONG"
    unix_server.close()
    assert not unix_server.socket.parent.exists()


@pytest.mark.parametrize("password", [{}, {"requirepass": "secret"}], ids=["open", "with a password"])
def test_a_replica_is_promoted(new_server: NewServer, password: dict[str, str]) -> None:
    """It has what the master had, gets what the master writes, and outlives it."""
    master, replica = new_server(**password), new_server(**password)
    master.run("SET", "before", 1)
    replica.replicate(master)
    assert replica.run("GET", "before") == b"1"
    master.run("SET", "after", 1)
    assert master.run("WAIT", 1, 1000) == 1
    assert replica.run("GET", "after") == b"1"
    master.kill()
    replica.promote()
    assert replica.info("replication")["role"] == "master"
    assert replica.run("GET", "after") == b"1"
    assert replica.run("SET", "after", 2) == b"OK"


def test_sentinels_promote_a_replica(new_server: NewServer, new_sentinel: Callable[..., Sentinel]) -> None:
    """They name the master to clients; when it is gone, they name its replica. It takes them four seconds."""
    master, replica = new_server(), new_server()
    replica.replicate(master)
    leader = new_sentinel(master, quorum=1, down_after_milliseconds="300")
    # It has a vote, which is needed, but does not see the master as down: so the two do not vote for different leaders.
    voter = new_sentinel(master, quorum=1, down_after_milliseconds="60000")
    for sentinel in (leader, voter):
        sentinel.wait_until_aware(replicas=1, sentinels=1)
        assert len(sentinel.run("SENTINEL", "SENTINELS", "main")) == 1
        assert sentinel.master_address() == master.address
    master.kill()
    eventually("the new master", lambda: leader.master_address() == replica.address)
    assert replica.info("replication")["role"] == "master"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent was killed")
def test_servers_die_with_the_tests(binary: Path, tmp_path: Path) -> None:
    """A test run that is killed leaves no server behind."""
    run = (
        "import pathlib, sys; from tests.redis.servers import Server;"
        "server = Server.start(*map(pathlib.Path, sys.argv[1:]));"
        "print(server.process.pid, flush=True); server.process.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", run, binary, tmp_path], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    with parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)

    def gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    try:
        eventually("the end of the server", gone, seconds=5)
    except ServerError:
        os.kill(child, signal.SIGKILL)
        raise
