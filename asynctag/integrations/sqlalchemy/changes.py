"""What a unit of work changes: the tags of its rows, as they were and as they are."""

import inspect
import string
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from inspect import Parameter, Signature
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import InstanceState, Mapper, RelationshipDirection, RelationshipProperty, object_session
from sqlalchemy.orm.exc import UnmappedColumnError

from asynctag.errors import InvalidTagError
from asynctag.integrations.sqlalchemy.names import every_row, is_outbox, name_of, row
from asynctag.tags import TagTemplates, compile_tags

#: What a class calls the tags of its rows.
CACHE_TAGS: Final = "__cache_tags__"


class Changes:
    """The tags of the rows that a session inserts, changes and deletes, gathered as it flushes.

    The tags of their tables come from the statements: see `named_by`.
    """

    def __init__(self) -> None:
        self.tags: set[str] = set()
        #: The tables, by name, whose rows a flush has told of. For whoever follows it to empty.
        self.told: set[str] = set()
        # What rows were, and what was linked to them, while their statements run: afterwards an object whose column
        # is set by SQL knows neither.
        self._before: WeakKeyDictionary[InstanceState[Any], tuple[dict[str, object], list[InstanceState[Any]]]]
        self._before = WeakKeyDictionary()

    def before(
        self, state: InstanceState[Any], connection: sa.Connection, *, inserted: bool = False, deleted: bool = False
    ) -> None:
        """The row of an object is about to be inserted or deleted, or to be changed if anything is different."""
        self.told.update(_tables_told(state.mapper))
        if inserted:
            replaced = _replaced(state)
            if replaced is not None:
                self._remember(state, replaced, connection, [])
            return
        linked, session = list(_linked(state, deleted=deleted)), state.session
        if deleted or linked or (session and session.is_modified(state.obj(), include_collections=False)):
            self._remember(state, state, connection, linked)

    def _remember(
        self,
        state: InstanceState[Any],
        of: InstanceState[Any],
        connection: sa.Connection,
        linked: list[InstanceState[Any]],
    ) -> None:
        values = _values(of, old=True)
        self._before[state] = values | _read_unknown(of, values, connection), linked

    def after(
        self, state: InstanceState[Any], connection: sa.Connection, *, inserted: bool = False, deleted: bool = False
    ) -> None:
        """The row of an object was inserted, changed or deleted."""
        found = self._before.pop(state, None)
        if inserted:
            found = ({} if found is None else found[0]), list(_linked(state, deleted=False))
        if found is None:  # It was set to what it was.
            return
        values, linked = found
        if values:
            self.tags.update(_tags_of_values(state.mapper, values))
        if not deleted:
            values = _values(state, old=False)
            self.tags.update(_tags_of_values(state.mapper, values | _read_unknown(state, values, connection)))
        for other in linked:
            self.tags.update(row_tags_of(other.mapper, _values(other, old=False)))


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
        if changes is None or is_outbox(mapper.local_table):
            return
        state: InstanceState[Any] = sa.inspect(target)
        tell = changes.before if before else changes.after
        tell(state, connection, inserted=inserted, deleted=deleted)

    event.listen(Mapper, name, listener)


_follow("before_insert", before=True, inserted=True)
_follow("after_insert", inserted=True)
_follow("before_update", before=True)
_follow("after_update")
_follow("before_delete", before=True, deleted=True)
_follow("after_delete", deleted=True)


_told: WeakKeyDictionary[Mapper[Any], frozenset[str]] = WeakKeyDictionary()


def _tables_told(mapper: Mapper[Any]) -> frozenset[str]:
    """The tables all of whose changes in a flush come with an event. `post_update` makes some without."""
    try:
        return _told[mapper]
    except KeyError:
        afterwards = {
            table
            for one in mapper.registry.mappers
            for relationship in one.relationships
            if relationship.post_update
            for table in _mapper_of_key(relationship).tables
        }
        made = _told[mapper] = frozenset(
            name_of(table) for table in mapper.tables if isinstance(table, sa.Table) and table not in afterwards
        )
        return made


def _mapper_of_key(relationship: RelationshipProperty[Any]) -> Mapper[Any]:
    """That of the rows which refer to others."""
    is_many_to_one = relationship.direction is RelationshipDirection.MANYTOONE
    return relationship.parent if is_many_to_one else relationship.mapper


def _replaced(state: InstanceState[Any]) -> InstanceState[Any] | None:
    """The object that is deleted in the same flush as this one, of the same key, is inserted: one UPDATE for both."""
    session, target = state.session, state.obj()
    if session is None or target is None:
        return None
    other = session.identity_map.get(state.mapper.identity_key_from_instance(target))
    return None if other is None or other is target else sa.inspect(other)


def _linked(state: InstanceState[Any], *, deleted: bool) -> Iterator[InstanceState[Any]]:
    """The other ends of the links that a flush makes or breaks in a table between two others."""
    for relationship in state.mapper.relationships:
        if relationship.direction is RelationshipDirection.MANYTOMANY:
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
        if held:
            values[attribute.key] = held[0]
    for name, value in zip(_key_names(state.mapper), state.identity or (), strict=False):
        if old or name not in values:
            values[name] = value
    return values


def _key_names(mapper: Mapper[Any]) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def values_of_key(state: InstanceState[Any]) -> dict[str, object]:
    return dict(zip(_key_names(state.mapper), state.identity or (), strict=False))


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
    yield from row_tags_of(mapper, values)
    templates = _templates_of(mapper)
    if templates:
        yield from templates.render(values)


def row_tags_of(mapper: Mapper[Any], values: Mapping[str, object]) -> Iterator[str]:
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
        name = name_of(table)
        try:
            yield row(name, [column.key for column in columns], [values[one] for one in names])
        except InvalidTagError:  # A key that has no safe text, or none: readers of such a row carry the table's tags.
            yield name
            yield every_row(name)


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
