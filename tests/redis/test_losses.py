"""What a server may lose, under load: nothing old is served, nothing hangs, no invalidation is lost that was written.

Each test breaks something several times while readers and writers are at work, as fast as they go on, and shows that
there were hits before and after. The last tests take a rule out of the backend, and the load has to notice.
"""

import asyncio
import hashlib
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import hiredis
import pytest
from redis.asyncio.sentinel import Sentinel as SentinelClient
from redis.exceptions import OutOfMemoryError

from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis import client as client_module
from asynctag.backends.redis import link as link_module
from asynctag.backends.redis.breaker import Breaker
from asynctag.backends.redis.connection import pack
from asynctag.backends.redis.scripts import ALL
from asynctag.errors import BackendError
from tests.redis.load import Load, Rows, StaleError
from tests.redis.proxy import Proxy
from tests.redis.servers import HOST, Sentinel, Server, eventually

NewServer = Callable[..., Server]

JOURNAL = "{asynctag}journal"

#: So many hits are seen before each disturbance, and after it.
SOME = 60


def clients(url: str, number: int = 2, **options: Any) -> list[Callable[[], RedisBackend]]:
    return [lambda: impatient(RedisBackend.from_url(url, **options))] * number


def impatient(backend: RedisBackend) -> RedisBackend:
    """With a breaker that pauses for a fifth of the time, so that nobody waits long for the end of it."""
    backend._client._breaker = Breaker(time.monotonic, pause=0.2)
    return backend


# --- what befalls a server, once ------------------------------------------------------------------------


def killed(server: Server, load: Load) -> None:
    """And started again, with nothing."""
    server.kill()
    load.go_on(computed=20, failed=2)
    server.launch()


def restarted_from_an_old_dump(server: Server, load: Load) -> None:
    """Under load, and then so that the first one to come is a process that knows no newer numbers."""
    server.run("SAVE")
    load.go_on(invalidations=25)
    server.kill()
    load.go_on(computed=20, failed=2)
    server.launch()
    load.go_on(hits=SOME)
    server.run("SAVE")
    load.go_on(invalidations=25)
    with load.at_rest():
        server.restart()
        load.newcomer()


def flushed(server: Server, load: Load) -> None:
    server.run("FLUSHALL")


def clients_killed(server: Server, load: Load) -> None:
    server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def scripts_flushed(server: Server, load: Load) -> None:
    server.run("SCRIPT", "FLUSH", "SYNC")


def without_replicas(server: Server, load: Load) -> None:
    server.run("CONFIG", "SET", "min-replicas-to-write", 1)
    load.go_on(tried=5, computed=20)
    server.run("CONFIG", "SET", "min-replicas-to-write", 0)


def halted(server: Server, load: Load) -> None:
    """For longer than anybody waits. Then it runs what has arrived meanwhile."""
    server.pause()
    load.go_on(failed=2, computed=20)
    server.resume()


def in_one_piece(server: Server, *commands: tuple[Any, ...]) -> list[Any]:
    """The replies to commands with none of anybody else's in between."""
    piece, replies = b"".join(pack(*command) for command in commands), hiredis.Reader()
    assert len(piece) < 16_000  # so much a server reads at once
    with socket.create_connection(server.address) as connection:
        connection.sendall(piece)
        found: list[Any] = []
        while len(found) < len(commands):
            replies.feed(connection.recv(10_000))
            while (reply := replies.gets()) is not False:
                found.append(reply)
    return found


def journal_evicted(server: Server, load: Load) -> None:
    """And nothing else, as `allkeys-lru` does with what was not used for long: entries stay."""
    # It is said to be idle: one in use is evicted last. And it is large: that it is gone is enough, even if the memory
    # of those who read has grown meanwhile. (Its tags are well compressed.)
    fill = "for i = 1, 12 do redis.call('ZADD', KEYS[1], 1, '|t|' .. i .. string.rep('x', 100000)) end"
    with load.without_writers():
        before = server.run("DBSIZE")
        is_there = True
        # A server looks at some keys, and for half a millisecond: on a busy machine that may be too few.
        while is_there:
            server.run("EVAL", fill, 1, JOURNAL)
            dump, used = server.run("DUMP", JOURNAL), int(server.info("memory")["used_memory"])
            *_, is_there, _ = in_one_piece(
                server,
                ("RESTORE", JOURNAL, 0, dump, "REPLACE", "IDLETIME", 1_000_000),
                ("CONFIG", "SET", "maxmemory", used - 100_000),
                ("EXISTS", JOURNAL),
                ("CONFIG", "SET", "maxmemory", 0),
            )
        assert server.run("DBSIZE") > before // 2


def evicted_at_random(server: Server, load: Load) -> None:
    """Entries, what is on its way into its place, and now and then the journal."""
    used = int(server.info("memory")["used_memory"])
    server.run("CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", used + 100_000)
    for number in range(200):
        with suppress(OutOfMemoryError):  # it evicts for half a millisecond, which may not be enough
            server.run("SET", f"filler:{number}", "x" * 10_000)
    server.run("CONFIG", "SET", "maxmemory", 0)
    server.run("EVAL", "for i = 0, 199 do redis.call('UNLINK', 'filler:' .. i) end", 0)


Disturbance = Callable[[Server, Load], None]

#: How often each befalls it; how many epochs that makes, at least.
DISTURBANCES: dict[str, tuple[Disturbance, int, int]] = {
    "SIGKILL, restarted empty": (killed, 3, 3),
    "SIGKILL, restarted from an old dump": (restarted_from_an_old_dump, 2, 4),
    "FLUSHALL": (flushed, 10, 10),
    "CLIENT KILL": (clients_killed, 15, 0),
    "SCRIPT FLUSH": (scripts_flushed, 10, 0),
    "min-replicas-to-write not reached": (without_replicas, 5, 0),
    "halted (SIGSTOP)": (halted, 2, 0),
    "the journal evicted (allkeys-lru)": (journal_evicted, 5, 5),
    "evicted at random (allkeys-random)": (evicted_at_random, 4, 1),
}

#: Memory is free when the key is gone, so that one key is enough; and the choice is among all.
CONFIG = {
    "journal_evicted": {
        "maxmemory_policy": "allkeys-lru",
        "maxmemory_samples": "64",
        **dict.fromkeys(("lazyfree_lazy_eviction", "lazyfree_lazy_server_del", "lazyfree_lazy_user_del"), "no"),
    }
}


def disturb(name: str, new_server: NewServer) -> Load:
    disturbance, times, epochs = DISTURBANCES[name]
    server = new_server(**CONFIG.get(disturbance.__name__, {}))
    options = {"timeout": 0.3, "connect_timeout": 0.3} if disturbance is halted else {}
    with Load(clients(server.url, **options)) as load:
        load.go_on(hits=SOME)
        for _ in range(times):
            disturbance(server, load)
            load.go_on(hits=SOME, invalidations=5)
    assert len(load.epochs) > epochs
    load.report(name, times)
    return load


@pytest.mark.parametrize("name", DISTURBANCES)
def test_under_load(name: str, new_server: NewServer) -> None:
    """No stale read, no hang, no invalidation that was written and is lost; hits before and after."""
    disturb(name, new_server)


# --- failovers -----------------------------------------------------------------------------------------


NOWHERE = (HOST, 1)


def cut_off(replica: Server) -> None:
    """Its master is where nobody listens, and the real one goes on without it."""
    replica.run("REPLICAOF", *NOWHERE)


def test_replicas_without_the_last_writes(new_server: NewServer) -> None:
    """Promoted one after the other, and back again; an address leads clients to the master, as balancers do.

    What the last one acknowledged is unknown to the next one, which has entries that are older.
    """
    master, replica = new_server(), new_server()
    with Proxy(master.address) as address:
        with Load(clients(address.url)) as load:
            for _ in range(3):
                load.go_on(hits=SOME)
                replica.replicate(master)
                load.go_on(hits=SOME, invalidations=5)
                cut_off(replica)
                load.go_on(invalidations=20)
                replica.promote()
                address.turn_to(replica.address)
                master, replica = replica, master
                load.go_on(hits=SOME)
    assert len(load.epochs) >= 4
    load.report("a replica without the last writes promoted", 3)


def come_back(new_server: NewServer) -> None:
    """A master was demoted, took over what its replica had, and was promoted again, while nobody asked for anything.

    It is the same process at the same address: what it acknowledged last is gone. Connections are ended, as Sentinel
    ends them; the first one to come knows no newer numbers.
    """
    master, replica = new_server(), new_server()
    with Proxy(master.address) as address:
        with Load(clients(address.url)) as load:
            for _ in range(2):
                load.go_on(hits=SOME)
                replica.replicate(master)
                load.go_on(hits=SOME, invalidations=5)
                cut_off(replica)
                load.go_on(invalidations=20)
                with load.at_rest():
                    replica.promote()
                    master.replicate(replica)
                    master.promote()
                    address.cut_now()
                    load.newcomer()
                load.go_on(hits=SOME)
    assert len(load.epochs) >= 3
    load.report("a master demoted and promoted again, without the last writes", 2)


def test_a_master_that_comes_back_with_older_data(new_server: NewServer) -> None:
    """Nothing old is served, though it is the process that it was."""
    come_back(new_server)


LAG = 1
#: What may pass until a master finds that its replicas lag, beyond that: it looks once a second, they report as often.
SLACK = 4.0


def test_the_old_master_still_answers(new_server: NewServer) -> None:
    """A network falls apart, with a master and clients on either side.

    With `min-replicas-to-write 1` the old one refuses soon; until then it takes invalidations that the new one never
    hears of. Promised, and held here: (1) clients of the new master are served nothing that is older than what it, or
    the old one before the network fell apart, has acknowledged; (2) those of the old one are not served anything older
    than what either has acknowledged, once it refuses; (3) till then, nothing older than what it has acknowledged
    itself; (4) that takes no longer than `min-replicas-max-lag` and two seconds or so; (5) once those clients have come
    over to the new one, what the old one had acknowledged till then counts there too.
    """
    old, new = new_server(), new_server()
    rows = Rows()
    with Proxy(old.address) as network, Proxy(old.address) as address:
        new.run("REPLICAOF", *network.address)
        eventually("the replica", lambda: new.info("replication")["master_link_status"] == "up")
        with (
            Load(clients(address.url, 1), rows=rows, threads=1) as here,
            Load(clients(new.url, 1), rows=rows, threads=1) as there,  # refused by a replica: it computes
        ):
            old.run("CONFIG", "SET", "min-replicas-to-write", 1, "min-replicas-max-lag", LAG)
            here.go_on(hits=SOME)
            there.go_on(computed=20)
            network.part()
            parted, written = time.monotonic(), here.invalidations
            before = list(here.acked)
            new.promote()
            there.oracles.append(before)
            there.go_on(hits=SOME, invalidations=5)
            eventually("a refusal", lambda: old.info("replication")["min_slaves_good_slaves"] == "0")
            window, unknown = time.monotonic() - parted, here.invalidations - written
            here.go_on(failed=5)  # what was under way is through
            here.oracles.append(there.acked)
            there.go_on(hits=SOME, invalidations=5)
            here.go_on(computed=50)
            address.turn_to(new.address)
            here.go_on(hits=SOME, invalidations=5)
            there.oracles.append(here.acked)
            there.go_on(hits=SOME, invalidations=5)
    assert window < LAG + SLACK
    here.report(f"split brain ({window:.1f} s, {unknown} invalidations), clients of the old master", 1)
    there.report("split brain, clients of the new master", 1)


def test_a_sentinel_failover(new_server: NewServer, new_sentinel: Callable[..., Sentinel]) -> None:
    """The master is killed: clients compute until a replica is promoted, which Sentinel tells them."""
    master, replica = new_server(), new_server()
    replica.replicate(master)
    leader = new_sentinel(master, quorum=1, down_after_milliseconds="300")
    voter = new_sentinel(master, quorum=1, down_after_milliseconds="60000")
    for sentinel in (leader, voter):
        sentinel.wait_until_aware(replicas=1, sentinels=1)

    def by_sentinel() -> RedisBackend:
        return impatient(RedisBackend(SentinelClient([leader.address, voter.address]).master_for(leader.name)))

    with Load([by_sentinel] * 2) as load:
        load.go_on(hits=SOME)
        master.kill()
        load.go_on(computed=50, failed=2)
        eventually("the new master", lambda: leader.master_address() == replica.address)
        load.go_on(hits=SOME, invalidations=5)
    assert len(load.epochs) >= 2
    load.report("Sentinel failover", 1)


# --- does the load notice? -----------------------------------------------------------------------------


def _known_by(patch: pytest.MonkeyPatch, lua: bytes, facts: Callable[[dict[str, str]], str]) -> None:
    for script in ALL:
        asks = b"local function who()"
        assert asks in script.text
        text = script.text.replace(asks, asks + b" do return " + lua + b" end")
        patch.setattr(script, "text", text)
        patch.setattr(script, "sha", hashlib.sha1(text).hexdigest().encode())
    patch.setattr(link_module, "who", facts)


def by_nothing(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks which server it is. (Those who knew newer numbers still notice.)"""
    _known_by(patch, b"'a server'", lambda facts: "a server")


def by_process(patch: pytest.MonkeyPatch) -> None:
    """That it was another server's replica meanwhile is not seen."""
    _known_by(patch, b"string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')", lambda facts: facts["run_id"])


def same_epoch(patch: pytest.MonkeyPatch) -> None:
    """A journal that was lost begins as the last one did."""
    patch.setattr(client_module.secrets, "randbits", lambda bits: 6)


def said_to_be_written(patch: pytest.MonkeyPatch) -> None:
    """An invalidation that has failed is not said to have."""

    async def invalidating(self: RedisBackend, tags: Any, script: Any, keys: Any, args: Any) -> Any:
        try:
            return await self._client.run(script, keys, args, takes_number=True)
        except BackendError:
            await asyncio.sleep(0.005)
            return [0, 0, 0], False

    patch.setattr(RedisBackend, "_invalidating", invalidating)


BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[NewServer], object]]] = [
    (by_nothing, partial(disturb, "SIGKILL, restarted from an old dump")),
    (by_process, come_back),
    (same_epoch, partial(disturb, "the journal evicted (allkeys-lru)")),
    (said_to_be_written, partial(disturb, "min-replicas-to-write not reached")),
]


@pytest.mark.parametrize(("breaker", "scenario"), BROKEN, ids=[breaker.__name__ for breaker, _ in BROKEN])
def test_a_rule_that_is_taken_out_is_noticed(
    breaker: Callable[[pytest.MonkeyPatch], None],
    scenario: Callable[[NewServer], object],
    new_server: NewServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oracle knows stale reads when there are any."""
    breaker(monkeypatch)
    with pytest.raises(StaleError):
        scenario(new_server)
