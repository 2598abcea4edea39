"""SQLAlchemy: which tags a unit of work changes, and which a statement reads.

| tag | names | goes when |
| --- | --- | --- |
| `product:635` | a row, by its table and key | it is inserted, changed or deleted |
| `product` | the table: its lists, counts, empty results | anything in it changes |
| `product:*` | every row of the table | a statement changes it that names no rows |
| `category:15;kind:book` | what a class says in `__cache_tags__` | a row that has these values, or had, changes |

A cached value that was built from one row carries the first and the third (`row_tags`), anything else that was
read from the table the second (`table_tag`). Changes that SQLAlchemy does not see (text, triggers) are told by hand:
`cache.invalidate(*table_tags(Product))`.
"""

import inspect
import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature
from typing import Any, Final, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary

try:
    import sqlalchemy as sa
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError(
        "asynctag.integrations.sqlalchemy needs SQLAlchemy: pip install asynctag[sqlalchemy]"
    ) from error
from sqlalchemy import event
from sqlalchemy.orm import InstanceState, Mapper, RelationshipDirection, object_session
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import Compiled, SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, ClauseElement, ColumnElement
from sqlalchemy.sql.selectable import SelectBase, TableClause

from asynctag.errors import ConfigurationError, InvalidTagError
from asynctag.tags import TagTemplates, check_tag, compile_tags, tag

__all__ = ["row_tag", "row_tags", "table_tag", "table_tags"]

#: A mapped class, or a table.
Source: TypeAlias = "type[Any] | TableClause"

#: What a class calls the tags of its rows.
CACHE_TAGS: Final = "__cache_tags__"

#: In place of a key: every row.
EVERY_ROW: Final = "*"

_SPECIAL = re.compile(r"[%;:*\x00-\x1f\x7f-\x9f]")


# --- names -------------------------------------------------------------------------------------------


def table_tag(source: Source) -> str:
    """The tag of what was read from a table without naming rows: `table_tag(Product) == "product"`.

    `source` is a mapped class or a table; one in a schema gives `"shop.product"`. Raises `ConfigurationError` for
    anything else.
    """
    return _name(_table(source))


def table_tags(source: Source) -> tuple[str, ...]:
    """The tags to invalidate when any rows of a table may have changed: those of its lists, and of every row."""
    name = table_tag(source)
    return name, _every_row(name)


def row_tag(source: Source, *key: object) -> str:
    """The tag of one row: `row_tag(Product, 635) == "product:635"`.

    `key` are the values of the primary key's columns, in their order. A key of several columns gives
    `"order_line.line:2;order_line.order_id:5"`. Raises `InvalidTagError` for a key that has no safe text, and
    `ConfigurationError` for one of another length than the table's.
    """
    table = _table(source)
    columns = [column.key for column in table.primary_key]
    if not columns or len(columns) != len(key):
        raise ConfigurationError(
            f"row_tag() was given {len(key)} values for a row of {table.name!r}, whose primary key is"
            f" {', '.join(columns) or 'none: its rows have no names. Use table_tag()'}"
        )
    return _row(_name(table), columns, key)


def row_tags(source: Source, *key: object) -> tuple[str, ...]:
    """The tags of a value that was built from one row: `("product:635", "product:*")`.

    The second goes when a statement such as `update(Product)` changes rows without naming them.
    """
    return row_tag(source, *key), _every_row(table_tag(source))


def _table(source: Source) -> TableClause:
    if isinstance(source, TableClause):
        return source
    mapper = sa.inspect(source, raiseerr=False)
    if isinstance(mapper, Mapper) and isinstance(mapper.local_table, TableClause):
        return mapper.local_table
    raise ConfigurationError(f"{source!r} is no mapped class and no table: give the class, as in table_tag(Product)")


def _name(table: TableClause) -> str:
    return check_tag(_SPECIAL.sub(_percent, getattr(table, "fullname", table.name)))


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def _every_row(name: str) -> str:
    return f"{name}:{EVERY_ROW}"


def _row(name: str, columns: Sequence[str], key: Sequence[object]) -> str:
    texts = [tag(key=value).removeprefix("key:") for value in key]
    if len(texts) == 1:
        return check_tag(f"{name}:{'%2A' if texts[0] == EVERY_ROW else texts[0]}")
    named = zip(columns, texts, strict=True)
    return check_tag(";".join(sorted(f"{name}.{_SPECIAL.sub(_percent, column)}:{text}" for column, text in named)))


# --- what a unit of work changes ---------------------------------------------------------------------


class Changes:
    """The tags of the rows that a session inserts, changes and deletes, gathered as it flushes.

    The tags of their tables come from the statements: see `named_by`.
    """

    def __init__(self) -> None:
        self.tags: set[str] = set()
        # What rows were, and what was linked to them, while their statements run: afterwards an object whose column
        # is set by SQL knows neither.
        self._before: WeakKeyDictionary[InstanceState[Any], tuple[dict[str, object], list[InstanceState[Any]]]]
        self._before = WeakKeyDictionary()

    def before(self, state: InstanceState[Any], connection: sa.Connection, *, deleted: bool) -> None:
        """The row of an object is about to be deleted, or to be changed if anything is different."""
        linked, session = list(_linked(state, deleted=deleted)), state.session
        if deleted or linked or (session and session.is_modified(state.obj(), include_collections=False)):
            values = _values(state, old=True)
            self._before[state] = values | _read_unknown(state, values, connection), linked

    def after(self, state: InstanceState[Any], connection: sa.Connection, *, inserted: bool, deleted: bool) -> None:
        """The row of an object was inserted, changed or deleted."""
        found = ({}, list(_linked(state, deleted=False))) if inserted else self._before.pop(state, None)
        if found is None:  # It was set to what it was.
            return
        values, linked = found
        if not inserted:
            self.tags.update(_tags_of_values(state.mapper, values))
        if not deleted:
            values = _values(state, old=False)
            self.tags.update(_tags_of_values(state.mapper, values | _read_unknown(state, values, connection)))
        for other in linked:
            self.tags.update(_row_tags_of(other.mapper, _values(other, old=False)))


#: In the `info` of a session: its `Changes`.
CHANGES: Final = "asynctag.changes"


def _changes_of(target: object) -> Changes | None:
    session = object_session(target)
    found: Changes | None = session.info.get(CHANGES) if session is not None else None
    return found


def _follow(name: str, *, before: bool = False, inserted: bool = False, deleted: bool = False) -> None:
    """Listen to an event of every row of every session in the process: most are of no session that is followed."""

    def listener(mapper: Mapper[Any], connection: sa.Connection, target: object) -> None:
        changes = _changes_of(target)
        if changes is None:
            return
        state: InstanceState[Any] = sa.inspect(target)
        if before:
            changes.before(state, connection, deleted=deleted)
        else:
            changes.after(state, connection, inserted=inserted, deleted=deleted)

    event.listen(Mapper, name, listener)


_follow("after_insert", inserted=True)
_follow("before_update", before=True)
_follow("after_update")
_follow("before_delete", before=True, deleted=True)
_follow("after_delete", deleted=True)


def _linked(state: InstanceState[Any], *, deleted: bool) -> Iterator[InstanceState[Any]]:
    """The other ends of the links that a flush makes or breaks in a table between two others."""
    for relationship in state.mapper.relationships:
        if relationship.direction is RelationshipDirection.MANYTOMANY and not relationship.viewonly:
            history = state.attrs[relationship.key].history
            for one in (*(history.added or ()), *(history.deleted or ()), *((deleted and history.unchanged) or ())):
                other = sa.inspect(one, raiseerr=False)
                if isinstance(other, InstanceState):
                    yield other


def _values(state: InstanceState[Any], *, old: bool) -> dict[str, object]:
    """The values of a row's columns, by attribute, as far as its object holds them."""
    values: dict[str, object] = {}
    for attribute in state.mapper.column_attrs:
        history = state.attrs[attribute.key].history
        held = (history.deleted or history.unchanged) if old else (history.added or history.unchanged)
        if held and not isinstance(held[0], ClauseElement):
            values[attribute.key] = held[0]
    for name, value in zip(_key_names(state.mapper), state.identity or (), strict=False):
        if old or name not in values:
            values[name] = value
    return values


def _key_names(mapper: Mapper[Any]) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def _read_unknown(
    state: InstanceState[Any], values: Mapping[str, object], connection: sa.Connection
) -> dict[str, object]:
    """What `__cache_tags__` names and an object does not hold, as it is in its row now.

    It was not loaded, or is made by the database.
    """
    mapper, templates = state.mapper, _templates_of(state.mapper)
    names = [name for name in templates.names if name not in values] if templates else []
    if not names:
        return {}
    columns = [mapper.column_attrs[name].columns[0] for name in names]
    key = [column == values[name] for column, name in zip(mapper.primary_key, _key_names(mapper), strict=True)]
    row = connection.execute(sa.select(*columns).select_from(mapper.persist_selectable).where(*key)).first()
    return {} if row is None else dict(zip(names, row, strict=True))


def _tags_of_values(mapper: Mapper[Any], values: Mapping[str, object]) -> Iterator[str]:
    yield from _row_tags_of(mapper, values)
    templates = _templates_of(mapper)
    if templates:
        yield from templates.render(values)


def _row_tags_of(mapper: Mapper[Any], values: Mapping[str, object]) -> Iterator[str]:
    """The tags of a row in each of its tables: joined inheritance has several."""
    for table in mapper.tables:
        if not isinstance(table, sa.Table):
            continue
        columns = list(table.primary_key)
        try:
            names = [mapper.get_property_by_column(column).key for column in columns]
        except UnmappedColumnError:
            columns, names = [], []
        if any(values.get(name) is None for name in names):
            continue  # Not in the database yet: it will be told of itself.
        name = _name(table)
        try:
            yield _row(name, [column.key for column in columns], [values[one] for one in names])
        except InvalidTagError:  # A key that has no safe text, or none: readers of such a row carry the table's tags.
            yield name
            yield _every_row(name)


class _RowTemplates:
    """`__cache_tags__` of one class."""

    def __init__(self, mapper: Mapper[Any], spec: Any) -> None:
        known = [attribute.key for attribute in mapper.column_attrs]
        compile_one = partial(
            compile_tags,
            signature=Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in known]),
            owner=f"{CACHE_TAGS} of {mapper.class_.__qualname__}",
        )
        compiled = compile_one(spec)  # Says what is wrong with it as a whole.
        self._templates: list[tuple[Collection[str], TagTemplates]]
        if callable(spec):
            parameters = inspect.signature(spec).parameters
            takes_all = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
            self.names = [name for name in known if takes_all or name in parameters]
            self._templates = [((), compiled)]
        else:
            self._templates = [(_names_in(template), compile_one([template])) for template in spec]
            #: The attributes whose values are needed.
            self.names = [name for name in known if any(name in used for used, _ in self._templates)]

    def render(self, values: Mapping[str, object]) -> Iterator[str]:
        """The tags of a row; none of a template that names what is NULL there."""
        for used, template in self._templates:
            if all(values.get(name) is not None for name in used):
                yield from template(values)


def _names_in(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


_templates: WeakKeyDictionary[Mapper[Any], _RowTemplates | None] = WeakKeyDictionary()


def _templates_of(mapper: Mapper[Any]) -> _RowTemplates | None:
    try:
        return _templates[mapper]
    except KeyError:
        spec = getattr(mapper.class_, CACHE_TAGS, None)
        made = _templates[mapper] = None if spec is None else _RowTemplates(mapper, spec)
        return made


# --- what a statement names --------------------------------------------------------------------------


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
        return _row(self.table, self.columns, key), _every_row(self.table)


@dataclass(frozen=True, slots=True)
class Named:
    """The tables that a statement names: `read` has those that it writes, too."""

    read: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    look_up: LookUp | None = None

    def tags_read(self, given: Mapping[str, object]) -> Iterable[str]:
        """The tags of what the statement returns, with its parameters. None at all: what it reads cannot be seen."""
        rows = self.look_up.tags(given) if self.look_up else None
        return self.read if rows is None else rows

    def tags_written(self, *, rows_known: bool) -> set[str]:
        """The tags of what it changes. In a flush the rows are known besides, from the objects."""
        return set(self.written) if rows_known else {*self.written, *map(_every_row, self.written)}


NOTHING: Final = Named()

_named: WeakKeyDictionary[Compiled, Named] = WeakKeyDictionary()


def named_by(compiled: Compiled | None) -> Named:
    """The tables in a compiled statement. What SQLAlchemy was given as text names none.

    Only the compiled one has the joins of eager loads. SQLAlchemy keeps it for the next statement that differs in
    its parameters only, and so is the answer kept here.
    """
    if not isinstance(compiled, SQLCompiler):
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
    selects = 0
    for element in visitors.iterate(statement):
        if isinstance(element, TableClause):
            read.add(element)
        elif isinstance(element, UpdateBase):
            written.update(one for one in visitors.iterate(element.table) if isinstance(one, TableClause))
        elif isinstance(element, SelectBase):
            selects += 1
    simple = selects == 1 and not written and len(read) == 1 and isinstance(statement, sa.Select)
    return Named(
        frozenset(map(_name, read)), frozenset(map(_name, written)), _look_up(compiled, statement) if simple else None
    )


def _look_up(compiled: SQLCompiler, statement: sa.Select[Any]) -> LookUp | None:
    match statement.get_final_froms():
        case [sa.Table() as table]:
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
    return LookUp(_name(table), tuple(column.key for column in columns), tuple(found[column] for column in columns))


def _conjuncts(clause: ColumnElement[Any] | None) -> Iterator[ColumnElement[Any]]:
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for one in clause.clauses:
            yield from _conjuncts(one)
    elif clause is not None:
        yield clause


# --- how isolated it is ------------------------------------------------------------------------------

#: As SQLAlchemy names them, in lower case. The last commits each statement by itself.
LEVELS: Final = frozenset({"read uncommitted", "read committed", "repeatable read", "serializable", "autocommit"})


def isolation_of(connection: sa.Connection) -> str:
    """One of LEVELS: that of the transaction that begins on a connection, without asking the database.

    What the connection or its engine was told, else what the server said of itself as the engine first connected. A
    level of another name, or none, gives "repeatable read", whose rules are safe at every level. What is set by a
    statement of text is not seen.
    """
    level = (
        connection.get_execution_options().get("isolation_level")
        # The only place that tells of create_engine(isolation_level="AUTOCOMMIT").
        or getattr(connection.dialect, "_on_connect_isolation_level", None)
        or connection.default_isolation_level
    )
    named = str(level).lower().replace("_", " ")
    return named if named in LEVELS else "repeatable read"
