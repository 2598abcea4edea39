"""What a statement names: the tables that it reads and writes, or the row that it looks up."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import Compiled, SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ColumnClause, ColumnElement
from sqlalchemy.sql.selectable import SelectBase, TableClause

from asynctag.integrations.sqlalchemy.names import every_row, is_outbox, name_of, row


@dataclass(frozen=True, slots=True)
class LookUp:
    """A statement that reads one table at one key: what it gives depends on this row only, found or not."""

    table: str
    columns: tuple[str, ...]
    parameters: tuple[str, ...]

    def tags(self, given: Mapping[str, object]) -> tuple[str, str] | None:
        """The tags of the row, with the statement's parameters; None if its key has no sure text.

        A text may be equal to others in the database, by its collation: numbers and UUIDs are not.
        """
        key = [given.get(name) for name in self.parameters]
        if not all(isinstance(value, int | UUID) and not isinstance(value, bool) for value in key):
            return None
        return row(self.table, self.columns, key), every_row(self.table)


@dataclass(frozen=True, slots=True)
class Named:
    """The tables that a statement names: `read` has those that it writes, too.

    `followed` are those that the database changes besides, by foreign keys that say so. `unseen`: parts of the
    statement are text, or all of it is, and may read anything.
    """

    read: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    followed: frozenset[str] = frozenset()
    look_up: LookUp | None = None
    unseen: bool = False

    def tags_read(self, given: Mapping[str, object]) -> Iterable[str]:
        """The tags of what the statement returns, with its parameters."""
        rows = self.look_up.tags(given) if self.look_up else None
        return self.read if rows is None else rows

    def tags_written(self, rows_told: Collection[str] = ()) -> set[str]:
        """The tags of what it changes. Of the tables in `rows_told` the rows are known, from the objects."""
        tables = self.written | self.followed
        return {*tables, *(every_row(one) for one in tables if one in self.followed or one not in rows_told)}


NOTHING: Final = Named()
UNSEEN: Final = Named(unseen=True)

_named: WeakKeyDictionary[Compiled, Named] = WeakKeyDictionary()


def named_by(compiled: Compiled | None) -> Named:
    """The tables in a compiled statement. What SQLAlchemy was given as text names none.

    Only the compiled one has the joins of eager loads. SQLAlchemy keeps it for the next statement that differs in
    its parameters only, and so is the answer kept here.
    """
    if compiled is None:
        return UNSEEN
    if not isinstance(compiled, SQLCompiler):  # it defines tables
        return NOTHING
    try:
        return _named[compiled]
    except KeyError:
        made = _named[compiled] = _name_tables(compiled)
        return made


def _name_tables(compiled: SQLCompiler) -> Named:
    statement: Any = getattr(compiled.compile_state, "statement", None)
    if statement is None:
        statement = compiled.statement
    if statement is None:
        return NOTHING
    read: set[TableClause] = set()
    written: set[TableClause] = set()
    followed: set[TableClause] = set()
    selects, unseen = 0, isinstance(statement, sa.TextClause)
    for element in visitors.iterate(statement):
        if isinstance(element, TableClause):
            read.add(element)
        elif isinstance(element, UpdateBase):
            for table in [one for one in visitors.iterate(element.table) if isinstance(one, TableClause)]:
                written.add(table)
                _follow(table, _keys_set(compiled, element), followed)
        elif isinstance(element, SelectBase):
            selects += 1
            unseen = unseen or _selects_from_text(element)
        else:
            unseen = unseen or _is_query_as_text(element)
    if selects and not read:  # of functions, which may read anything
        unseen = True
    look_up = None
    if selects == 1 and not written and not unseen and isinstance(statement, sa.Select):
        look_up = _look_up(compiled, statement)
    return Named(_names(read), _names(written), _names(followed), look_up, unseen)


def _names(tables: Iterable[TableClause]) -> frozenset[str]:
    return frozenset(name_of(table) for table in tables if not is_outbox(table))


# --- text

_QUERY = re.compile(r"\b(?:select|table|from|join)\b", re.IGNORECASE)


def _is_query_as_text(element: object) -> bool:
    if isinstance(element, sa.TextClause):
        return bool(_QUERY.search(element.text))
    return isinstance(element, ColumnClause) and element.is_literal and bool(_QUERY.search(str(element.name)))


def _selects_from_text(select: SelectBase) -> bool:
    if not isinstance(select, sa.Select):
        return False
    froms = select.get_final_froms()
    return any(isinstance(one, sa.TextClause) for part in froms for one in visitors.iterate(part))


# --- what the database does besides

#: What a foreign key may say of the rows that refer to a row.
_CHANGES: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})

#: In place of the columns that an update sets: the row goes.
_DELETED: Final = None

#: They cannot be told.
_ANY: Final = frozenset({"*"})


def _keys_set(compiled: SQLCompiler, statement: UpdateBase) -> frozenset[str] | None:
    """The columns that are set, by key; or that they cannot be told, or that the row goes."""
    if isinstance(statement, sa.Delete):
        return _DELETED
    if not isinstance(statement, sa.Update):
        return frozenset()
    if compiled.column_keys is None or statement is not compiled.statement or statement._values:
        return _ANY
    return frozenset(compiled.column_keys)


def _follow(table: TableClause, keys: frozenset[str] | None, found: set[TableClause]) -> None:
    """Add the tables whose rows the database changes with those of `table`, as the metadata has it."""
    if not isinstance(table, sa.Table):
        return
    for other in table.metadata.tables.values():
        for constraint in other.foreign_key_constraints:
            targets = [element.target_fullname.rpartition(".") for element in constraint.elements]
            if any(name != table.fullname for name, _, _ in targets) or other in found:
                continue
            action = (constraint.ondelete if keys is _DELETED else constraint.onupdate) or ""
            reached = keys is None or keys is _ANY or not keys.isdisjoint(key for _, _, key in targets)
            if reached and action.upper() in _CHANGES:
                found.add(other)
                goes = keys is _DELETED and action.upper() == "CASCADE"
                _follow(other, _DELETED if goes else frozenset(constraint.column_keys), found)


# --- a row by its key


def _look_up(compiled: SQLCompiler, statement: sa.Select[Any]) -> LookUp | None:
    match statement.get_final_froms():
        case [sa.Table() as table] if not is_outbox(table):
            columns = list(table.primary_key)
        case _:
            return None
    found: dict[ColumnElement[Any], str] = {}
    for condition in _conjuncts(statement.whereclause):
        if isinstance(condition, BinaryExpression) and condition.operator is operators.eq:
            for column, value in ((condition.left, condition.right), (condition.right, condition.left)):
                if isinstance(value, BindParameter):
                    found[column] = compiled.bind_names.get(value, "")
    if not columns or not all(found.get(column) for column in columns):
        return None
    return LookUp(name_of(table), tuple(column.key for column in columns), tuple(found[column] for column in columns))


def _conjuncts(clause: ColumnElement[Any] | None) -> Iterator[ColumnElement[Any]]:
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for one in clause.clauses:
            yield from _conjuncts(one)
    elif clause is not None:
        yield clause


#: As SQLAlchemy names them, in lower case. The last commits each statement by itself.
LEVELS: Final = frozenset({"read uncommitted", "read committed", "repeatable read", "serializable", "autocommit"})


def isolation_of(connection: sa.Connection) -> str:
    """One of LEVELS: that of the transaction that begins on a connection, without asking the database.

    What the connection or its engine was told, else what the server said of itself as the engine first connected. A
    level of another name, or none, gives "repeatable read", whose rules are safe at every level. What is set by a
    statement of text is not seen.
    """
    return _named_level(_level(connection))


def isolation_of_engine(engine: sa.Engine) -> str | None:
    """The same of the connections that an engine gives, as long as nobody tells them something else.

    None as long as it has not connected, if nobody has told it either.
    """
    level = _level(engine)
    return None if level is None else _named_level(level)


def _level(told: sa.Connection | sa.Engine) -> Any:
    return (
        told.get_execution_options().get("isolation_level")
        # The only place that tells of create_engine(isolation_level="AUTOCOMMIT").
        or getattr(told.dialect, "_on_connect_isolation_level", None)
        or getattr(told.dialect, "default_isolation_level", None)
    )


def _named_level(level: object) -> str:
    named = str(level).lower().replace("_", " ")
    return named if named in LEVELS else "repeatable read"
