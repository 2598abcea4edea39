"""One session that is followed: what it changes is held from before its commits till after them."""

import logging
import re
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, TypeAlias
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.orm import Session

from asynctag.cache import Cache
from asynctag.errors import ConfigurationError, InvalidationError
from asynctag.integrations.outbox import Outbox
from asynctag.integrations.sqlalchemy.changes import CHANGES, Changes
from asynctag.integrations.sqlalchemy.events import UNIT, units
from asynctag.integrations.sqlalchemy.reads import Reads
from asynctag.integrations.sqlalchemy.statements import isolation_of, named_by
from asynctag.names import tag_name
from asynctag.pending import Invalidator
from asynctag.transaction import Block

logger = logging.getLogger("asynctag")

#: Waits for a coroutine, in the midst of SQLAlchemy's own code, which is synchronous.
Wait: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]

#: The isolation of the block, where it is not the database's. An ORM's session shows rows as it has loaded them,
#: whatever others commit, so it is a snapshot at any level.
_SNAPSHOT: Final = "repeatable read"

_READS_ONLY = re.compile(r"\s*(?:select|values|table|show|explain|pragma)\b", re.IGNORECASE)


def level_of_block(isolation: str) -> str:
    """The rules for a session, at an isolation as SQLAlchemy has it."""
    return isolation if isolation in ("read uncommitted", "serializable") else _SNAPSHOT


class Unit:
    """Follows `session` in `block`, from its first statement to its end. Used by one task at a time, as a session is.

    `wait` is for the session's events; `by` writes instead of the block's own, where they wait by blocking.
    `tells_isolation`: the block is to be told the isolation of each connection. `outbox` gets what is changed, in the
    session's own transaction.
    """

    def __init__(
        self,
        cache: Cache,
        block: Block,
        session: Session,
        wait: Wait,
        *,
        by: Invalidator | None = None,
        tells_isolation: bool,
        reads: Reads | None,
        outbox: Outbox | None,
    ) -> None:
        self._cache = cache
        self._block = block
        self._session = session
        self._wait = wait
        self._by = by
        self._tells_isolation = tells_isolation
        self._reads = reads
        self._outbox = outbox
        self._changes = Changes()
        self._connections: WeakSet[sa.Connection] = WeakSet()
        self._is_open = False  # the database's transaction, as far as anybody has told
        self._at_once = block.root.isolation == "read uncommitted"
        self._flush_is_due = self._is_flushing = False
        self._written: set[str] = set()  # by the flush that is under way
        self._held: set[str] = set()
        self._in_outbox: set[str] = set()  # as far as it is sure that no savepoint has taken it away
        self._is_in_doubt = self._is_committed = self._wrote_unseen = False
        session.info[UNIT] = self
        session.info[CHANGES] = self._changes

    def leave(self) -> None:
        """Follow the session no longer, as its block is about to end."""
        if self._is_open:  # closing it failed, or goes on elsewhere
            self._block.doubt()
        self._session.info.pop(UNIT, None)
        self._session.info.pop(CHANGES, None)
        self._let_go_of_connections()

    # --- the transaction -------------------------------------------------------------------------------

    def begins(self) -> None:
        self._is_open = True

    def connected(self, connection: sa.Connection) -> None:
        """Before the first statement on it; again, for each savepoint."""
        if connection in self._connections:
            return
        self._connections.add(connection)
        level = isolation_of(connection)
        self._at_once = self._at_once or level == "read uncommitted"
        if self._tells_isolation:
            self._block.tell_isolation(level_of_block(level))

    def commit_is_due(self) -> None:
        """Statements may still be sent: what was invalidated by hand, in the block, is not in the outbox yet."""
        self._write_to_outbox(self._block.names)

    def rolls_back_to_savepoint(self) -> None:
        """Rows of the outbox go with it: nobody tells which."""
        self._in_outbox.clear()

    def commits(self) -> None:
        """A COMMIT is sent: till it is answered nobody knows what becomes of it."""
        self._is_in_doubt = True

    def refused(self) -> None:
        """The server has answered, with an error."""
        self._is_in_doubt = False

    def committed(self) -> None:
        self._is_committed, self._is_in_doubt = True, False

    def ends(self) -> None:
        """After the commit, or the rollback; the connections are given back already. Raises nothing of a backend."""
        self._let_go_of_connections()
        self._is_open = False
        if self._wrote_unseen and not self._is_committed:
            self._block.drop()
        if self._is_in_doubt:
            self._block.doubt()
        self._is_in_doubt = self._is_committed = self._wrote_unseen = False
        self._held.clear()
        self._in_outbox.clear()
        if self._block.names:
            self._wait(self._block.release())

    def _let_go_of_connections(self) -> None:
        for connection in list(self._connections):
            units.pop(connection, None)
        self._connections.clear()

    # --- what it changes -------------------------------------------------------------------------------

    def flush_is_due(self) -> None:
        """What others do before the flush is no part of it yet: that begins with a transaction of its own."""
        self._flush_is_due = True

    def flush_begins(self) -> None:
        if self._flush_is_due:
            self._flush_is_due, self._is_flushing = False, True
            self._written.clear()
            self._changes.tags.clear()
            self._changes.told.clear()

    def flush_ends(self) -> None:
        """All at once: the keys of new rows are known, and nothing is committed."""
        if self._is_flushing:
            self._is_flushing = False
            self._hold(self._written | self._changes.tags)

    def executes(self, text: str, context: Any) -> None:
        """A statement is about to be sent."""
        named = named_by(context.compiled)
        if named.unseen and not _READS_ONLY.match(text):
            self._wrote_unseen = True
        if named.written:
            # Its own statements alone keep to the rows that it tells of: others may be sent while it is under way.
            is_its_own = self._is_flushing and context.execution_options.get("compiled_cache") is not None
            tags = named.tags_written(self._changes.told if is_its_own else ())
            if not self._is_flushing:
                self._hold(tags)
            elif self._at_once:
                self._hold(named.tags_written() | self._changes.tags)
            self._written |= tags
        if self._reads is not None:
            self._reads.statement(text, named, context)

    def _hold(self, tags: set[str]) -> None:
        names = [tag_name(self._cache.namespace, one) for one in sorted(tags)]
        new = [name for name in names if name not in self._held]
        if new and self._lease(new):
            self._held.update(new)
        self._write_to_outbox(names)

    def _lease(self, names: list[str]) -> bool:
        """Whether they are held. With an outbox that is no condition: its row is delivered, whatever is not held."""
        with_outbox = self._outbox is not None
        try:
            written: bool = self._wait(self._block.invalidate(self._cache, names, None, queue=with_outbox, by=self._by))
        except InvalidationError as error:
            if not with_outbox:
                raise
            logger.error("%s. The outbox has it", error)
            return False
        return written

    def _write_to_outbox(self, names: Collection[str]) -> None:
        """In the transaction of what has changed. Again, where that may have been rolled back to a savepoint."""
        if self._outbox is None or not self._session.is_active:  # after a flush that failed nothing can be written
            return
        new = [name for name in names if name not in self._in_outbox]
        if new:
            connection = self._session.connection(bind_arguments={"clause": sa.insert(self._outbox.table)})
            if isolation_of(connection) == "autocommit":
                raise ConfigurationError(
                    "with AUTOCOMMIT what is changed and its row in the outbox are not committed together: give the "
                    "engine another isolation level, or the unit of work no outbox"
                )
            self._outbox.write(connection, new)
            self._in_outbox.update(new)

    # --- what it reads ---------------------------------------------------------------------------------

    def loaded(self, target: object) -> None:
        if self._reads is not None:
            self._reads.loaded(target)
