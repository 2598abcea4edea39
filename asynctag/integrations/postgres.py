"""PostgreSQL: whether its streaming replicas have replayed what was committed, so that a lag ends as soon as it can.

    caught_up = ReplicasCaughtUp(primary.fetchval, [replica.fetchval])  # pools of asyncpg
    cache = Cache(backend, replica_lag=8, caught_up=caught_up)

The replicas are asked themselves. The primary's `pg_stat_replication` lists those that are connected to it: one that
has lost its connection is not there, still answers whoever reads from it, and would be taken for up to date.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from anyio import move_on_after, sleep

from asynctag.errors import ConfigurationError
from asynctag.expiry import Seconds, seconds
from asynctag.lag import FIRST_ASKED, LAST_ASKED

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["ReplicasCaughtUp", "of_engine", "of_psycopg"]

logger = logging.getLogger("asynctag")

#: Runs one SQL statement, each time anew, and gives the first value of its first row. asyncpg's `pool.fetchval` is one.
Run: TypeAlias = Callable[[str], Awaitable[object]]

#: Up to where the log goes, and not up to where it is written, as `pg_current_wal_lsn()` has it: what was committed
#: with `synchronous_commit=off` is visible before it is written.
_POSITION: Final = "SELECT CAST(pg_current_wal_insert_lsn() AS text)"

#: False of a server that takes writes itself: after a failover nobody knows how its log goes on from the other's.
_REPLAYED: Final = "SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= CAST('{}' AS pg_lsn)"

_IS_POSITION: Final = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}")


class ReplicasCaughtUp:
    """A probe for `caught_up=`: true once every replica has replayed all that was committed before the call.

    Each call takes the primary's position and waits until the replicas have it: it asks at once, after 0.05 seconds,
    and then less and less often, down to once a second. So each commit waits for its own position, however many come
    after it. How long at most is up to who calls: a lag ends the wait with its own time.

    `primary` and `replicas` run one SQL statement and give its value: `pool.fetchval` of asyncpg, `of_psycopg(...)`,
    `of_engine(...)`. Name every replica that anybody reads from, each by an address of its own: behind one that stands
    for several, nobody knows which has answered. One that does not answer within `timeout` seconds, that fails, or that
    is no replica any more has not caught up. A warning says so, once until it answers again. What the primary raises
    goes to who calls. Any role may run the statements.

    A replica that crashes and recovers may for a moment show less than it had replayed: no probe sees that.

    Source: https://www.postgresql.org/docs/current/functions-admin.html

    Raises `ConfigurationError` for values that cannot be meant.
    """

    def __init__(self, primary: Run, replicas: Iterable[Run], *, timeout: Seconds = 1) -> None:
        self._primary = _check_run(primary, "primary")
        if not isinstance(replicas, Iterable):
            raise ConfigurationError(f"replicas={replicas!r}: give a list, such as [replica.fetchval]")
        self._replicas = [_check_run(replica, f"replicas[{number}]") for number, replica in enumerate(replicas)]
        if not self._replicas:
            raise ConfigurationError("replicas=[]: name every replica that is read from")
        self._timeout = seconds(timeout, "timeout", zero=False)
        self._silent: set[int] = set()

    def __repr__(self) -> str:
        return f"<ReplicasCaughtUp of {len(self._replicas)} replicas>"

    async def __call__(self) -> bool:
        """Wait until every replica has replayed what the primary has logged by now. Returns True."""
        position = await self._primary(_POSITION)
        if not isinstance(position, str) or not _IS_POSITION.fullmatch(position):
            raise ConfigurationError(
                f"the primary's position is {position!r}: give a function that returns the first value of the first "
                "row, as pool.fetchval of asyncpg does"
            )
        delay = FIRST_ASKED
        for number in range(len(self._replicas)):
            while not await self._has_replayed(number, position):
                await sleep(delay)
                delay = min(2 * delay, LAST_ASKED)
        return True

    async def _has_replayed(self, number: int, position: str) -> bool:
        answer: object = None
        try:
            with move_on_after(self._timeout) as waiting:
                answer = await self._replicas[number](_REPLAYED.format(position))
            if waiting.cancelled_caught:
                raise TimeoutError(f"no answer within {self._timeout:g} s")
        except Exception as error:
            if number not in self._silent:
                self._silent.add(number)
                logger.warning(
                    "replicas[%d] does not say whether it has caught up (%s): it is taken for one that has not",
                    number,
                    str(error) or type(error).__name__,
                )
            return False
        self._silent.discard(number)
        if answer is not None and not isinstance(answer, bool):
            raise ConfigurationError(
                f"replicas[{number}] answered {answer!r}: give a function that returns the first value of the first "
                "row, as pool.fetchval of asyncpg does"
            )
        return answer is True


def of_engine(engine: "AsyncEngine") -> Run:
    """Statements run by an `AsyncEngine` of SQLAlchemy, each on a connection of its pool."""

    async def run(statement: str) -> object:
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql(statement)).scalar()

    return run


def of_psycopg(connection: Callable[[], AbstractAsyncContextManager[Any]]) -> Run:
    """Statements run by psycopg. `connection` opens an `AsyncConnection` for `async with`: a pool's `connection`."""

    async def run(statement: str) -> object:
        async with connection() as opened:
            row = await (await opened.execute(statement)).fetchone()
            return None if row is None else row[0]

    return run


def _check_run(run: Run, name: str) -> Run:
    if not callable(run):
        raise ConfigurationError(
            f"{name}={run!r}: give an async function that runs one SQL statement and returns its value: pool.fetchval "
            "of asyncpg, of_psycopg(pool.connection), of_engine(engine)"
        )
    return run
