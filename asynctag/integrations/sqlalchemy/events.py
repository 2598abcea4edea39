"""What SQLAlchemy tells of the sessions that are followed, handed to their units.

Its events are listened to once a process, and on each engine that a followed session uses. A session that nobody
follows costs one look into its `info`.
"""

import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

if TYPE_CHECKING:
    from asynctag.integrations.sqlalchemy.unit import Unit

#: In the `info` of a session: its `Unit`.
UNIT: Final = "asynctag.unit"

#: The units of the connections that sessions use, for as long as their transactions last.
units: "WeakKeyDictionary[sa.Connection, Unit]" = WeakKeyDictionary()

#: What a server says where it does not know itself: of SQL's class 08, a connection that failed, too.
_UNKNOWN: Final = "40003"

_engines: WeakSet[sa.Engine] = WeakSet()
_lock = threading.Lock()


def _unit_of(session: Session) -> "Unit | None":
    unit: Unit | None = session.info.get(UNIT)
    return unit


# --- of sessions -------------------------------------------------------------------------------------


@event.listens_for(Session, "after_transaction_create")
def _created(session: Session, transaction: SessionTransaction) -> None:
    unit = _unit_of(session)
    if unit is None or transaction.nested:
        return
    if transaction.parent is None:
        unit.begins()
    else:
        unit.flush_begins()


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    unit = _unit_of(session)
    if unit is None or transaction.nested:
        return
    if transaction.parent is None:
        unit.ends()
    else:
        unit.flush_ends()


@event.listens_for(Session, "after_begin")
def _connected(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    unit = _unit_of(session)
    if unit is not None:
        _listen(connection.engine)
        units[connection] = unit
        unit.connected(connection)


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, context: Any, instances: Any) -> None:
    unit = _unit_of(session)
    if unit is not None:
        unit.flush_is_due()


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, context: Any) -> None:
    unit = _unit_of(session)
    if unit is not None:
        unit.flush_ends()


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    unit = _unit_of(session)
    if unit is not None and not session.in_nested_transaction():
        unit.commit_is_due()


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    unit = _unit_of(session)
    if unit is not None and not session.in_nested_transaction():
        unit.committed()


def listen_to_rows() -> None:
    """From the first unit on that tags what it reads: it is called for each row of every session."""
    with _lock:
        if not event.contains(Session, "loaded_as_persistent", _loaded):
            event.listen(Session, "loaded_as_persistent", _loaded)


def _loaded(session: Session, target: object) -> None:
    unit = _unit_of(session)
    if unit is not None:
        unit.loaded(target)


# --- of engines --------------------------------------------------------------------------------------


def _listen(engine: sa.Engine) -> None:
    engine = getattr(engine, "_proxied", engine)  # engine.execution_options() gives a new one at each call
    with _lock:
        if engine in _engines:
            return
        _engines.add(engine)
    event.listen(engine, "before_cursor_execute", _executes)
    event.listen(engine, "commit", _commits)
    event.listen(engine, "prepare_twophase", _prepares)
    event.listen(engine, "rollback_savepoint", _rolls_back_to_savepoint)
    event.listen(engine, "handle_error", _fails)


def _executes(connection: sa.Connection, cursor: Any, statement: str, given: Any, context: Any, many: bool) -> None:
    unit = units.get(connection)
    if unit is not None and context is not None:
        unit.executes(statement, context)


def _commits(connection: sa.Connection) -> None:
    unit = units.get(connection)
    if unit is not None:
        unit.commits()


def _prepares(connection: sa.Connection, xid: Any) -> None:
    _commits(connection)


def _rolls_back_to_savepoint(connection: sa.Connection, name: str, context: Any) -> None:
    unit = units.get(connection)
    if unit is not None:
        unit.rolls_back_to_savepoint()


def _fails(context: ExceptionContext) -> None:
    """An error: where the server says so itself, it has carried out no COMMIT."""
    unit = None if context.connection is None else units.get(context.connection)
    if unit is None or context.statement is not None or context.is_disconnect:
        return
    error = context.original_exception
    if isinstance(error, context.dialect.loaded_dbapi.Error):
        code = str(getattr(error, "sqlstate", None) or "")
        if not code.startswith("08") and code != _UNKNOWN:
            unit.refused()
