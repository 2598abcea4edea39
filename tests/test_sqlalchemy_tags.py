"""Which tags a unit of work changes and a statement reads, with SQLAlchemy on SQLite, sync and async."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String, Table, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    WriteOnlyMapped,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.pool import StaticPool

from asynctag.errors import ConfigurationError, InvalidTagError, TagTemplateError
from asynctag.integrations.sqlalchemy import row_tag, row_tags, table_tag, table_tags
from asynctag.integrations.sqlalchemy.changes import CHANGES, Changes
from asynctag.integrations.sqlalchemy.statements import isolation_of, named_by

Action = Callable[[Session], object]

TICKET = UUID(int=7)


class Base(DeclarativeBase):
    pass


def labels_of(name: str) -> Table:
    return Table(
        f"{name}_label",
        Base.metadata,
        sa.Column(f"{name}_id", ForeignKey(f"{name}.id"), primary_key=True),
        sa.Column("label_id", ForeignKey("label.id"), primary_key=True),
    )


labels_of_products = labels_of("product")


class Category(Base):
    __tablename__ = "category"
    id: Mapped[int] = mapped_column(primary_key=True)
    products: Mapped[list["Product"]] = relationship(back_populates="category")
    notes: Mapped[list["Note"]] = relationship(cascade="all, delete-orphan")
    labels: Mapped[list["Label"]] = relationship(secondary=labels_of("category"))
    visits: WriteOnlyMapped["Visit"] = relationship(passive_deletes=True)


class Product(Base):
    __tablename__ = "product"
    __cache_tags__ = ("category:{category_id};kind:{kind}", "price:{price}")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="plain")
    price: Mapped[int] = mapped_column(default=1)
    category_id: Mapped[int | None] = mapped_column(ForeignKey("category.id"))
    category: Mapped[Category | None] = relationship(back_populates="products")
    labels: Mapped[list["Label"]] = relationship(secondary=labels_of_products)


class Book(Product):
    __tablename__ = "book"
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(ForeignKey("product.id"), primary_key=True)
    pages: Mapped[int] = mapped_column(default=100)


class Label(Base):
    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="new")


class Note(Base):
    __tablename__ = "note"
    category_id: Mapped[int] = mapped_column(ForeignKey("category.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)


class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column(primary_key=True)
    category_id: Mapped[int | None] = mapped_column(ForeignKey("category.id"))


class Reading(Base):
    __tablename__ = "reading"
    at: Mapped[datetime] = mapped_column(primary_key=True)


class Ticket(Base):
    __tablename__ = "ticket"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(8), unique=True)
    seat: Mapped[int] = mapped_column(default=1)


class TicketByCode(Base):
    __table__ = Ticket.__table__
    __mapper_args__ = {"primary_key": [Ticket.__table__.c.code], "exclude_properties": ["id"]}  # noqa: RUF012
    code: Mapped[str]
    seat: Mapped[int]


class Country(Base):
    __tablename__ = "country"
    code: Mapped[str] = mapped_column(primary_key=True)


def fill(session: Session) -> None:
    first = Category(id=1, products=[Product(id=1, labels=[Label(id=1)]), Book(id=2)], notes=[Note(line=1)])
    session.add_all([first, Category(id=2), Label(id=2), Visit(id=1, category_id=1), Country(code="NL")])
    session.add(Ticket(id=TICKET, code="A"))


class Seen:
    """What was changed by rows, and what every statement named."""

    def __init__(self) -> None:
        self.rows: set[str] = set()
        self.written: set[str] = set()
        self.statements: list[set[str]] = []

    def listen(self, engine: sa.Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._statement)

    def _statement(self, connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
        named = named_by(context.compiled)
        self.written |= named.written
        given = context.compiled_parameters[0] if context.compiled else {}
        self.statements.append(set(named.tags_read(given)))


@pytest.fixture(params=["sqlite", "aiosqlite"])
def see(request: pytest.FixtureRequest) -> Iterator[Callable[[Action], Seen]]:
    """Runs an action in a session on the data of `fill`, flushes it, and tells what was seen of it."""
    seen, changes = Seen(), Changes()

    def work(session: Session, action: Action) -> None:
        session.info[CHANGES] = changes
        action(session)
        session.flush()

    def run(action: Action) -> Seen:
        engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        try:
            Base.metadata.create_all(engine)
            with Session(engine) as session, session.begin():
                fill(session)
            seen.listen(engine)
            with Session(engine) as session:
                work(session, action)
        finally:
            engine.dispose()
        seen.rows = changes.tags
        return seen

    async def run_async(action: Action) -> Seen:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            async with AsyncSession(engine) as session, session.begin():
                await session.run_sync(fill)
            seen.listen(engine.sync_engine)
            async with AsyncSession(engine) as session:
                await session.run_sync(work, action)
        finally:
            await engine.dispose()
        seen.rows = changes.tags
        return seen

    if request.param == "sqlite":
        yield run
    else:
        yield lambda action: asyncio.run(run_async(action))


# --- names


def test_names_of_tables_and_rows() -> None:
    """They are what people write by hand: the table's name, and its key."""
    assert table_tag(Product) == table_tag(Product.__table__) == "product"
    assert row_tag(Product, 635) == "product:635"
    assert row_tag(Ticket, UUID(int=5)) == "ticket:00000000-0000-0000-0000-000000000005"
    assert row_tags(Product, 635) == ("product:635", "product:*")
    assert table_tags(Product) == ("product", "product:*")


def test_a_key_of_several_columns() -> None:
    """Is a composite of them, whatever their order in the table."""
    assert row_tag(Note, 7, 1) == "note.category_id:7;note.line:1"
    swapped = Table(
        "swapped",
        sa.MetaData(),
        sa.Column("b", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer, primary_key=True),
    )
    assert row_tag(swapped, 2, 1) == "swapped.a:1;swapped.b:2"


def test_names_cannot_be_mistaken_for_others() -> None:
    """Of schemas, of odd tables, of keys that look like separators or like every row."""
    metadata = sa.MetaData()

    def table(name: str, schema: str | None = None) -> Table:
        return Table(name, metadata, sa.Column("id", sa.String, primary_key=True), schema=schema)

    assert table_tag(table("product", schema="shop")) == "shop.product"
    assert table_tag(table("a:b;c*")) == "a%3Ab%3Bc%2A"
    plain = table("plain")
    assert row_tag(plain, "*") == "plain:%2A" != row_tags(plain, "1")[1]
    assert row_tag(plain, "%2A") == "plain:%252A"
    assert row_tag(plain, "1;x:2") == "plain:1%3Bx%3A2"


def test_what_has_no_name_is_refused() -> None:
    """With what to do instead."""
    with pytest.raises(ConfigurationError, match="no mapped class and no table"):
        table_tag("product")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"2 values for a row of 'product', whose primary key is id"):
        row_tag(Product, 1, 2)
    with pytest.raises(ConfigurationError, match=r"none: its rows have no names. Use table_tag\(\)"):
        row_tag(Table("keyless", sa.MetaData(), sa.Column("x", sa.Integer)))
    with pytest.raises(InvalidTagError, match="datetime"):
        row_tag(Reading, datetime(2026, 1, 1))


# --- what a unit of work changes


def insert(session: Session) -> None:
    session.add(Label())  # Its key is given by the database: it has 1 and 2.


def change(session: Session) -> None:
    session.get_one(Product, 1).price = 5


def change_unchanged(session: Session) -> None:
    session.get_one(Product, 1).price = 1


def delete(session: Session) -> None:
    session.delete(session.get_one(Country, "NL"))


def change_expired(session: Session) -> None:
    product = session.get_one(Product, 1)
    session.expire(product)
    product.price, product.category_id = 5, 2


def delete_expired(session: Session) -> None:
    visit = session.get_one(Visit, 1)
    session.expire(visit)
    session.delete(visit)


def change_by_sql(session: Session) -> None:
    session.get_one(Product, 1).price = Product.price + 41  # type: ignore[assignment]


def insert_by_sql(session: Session) -> None:
    session.add(Product(id=9, price=sa.select(sa.func.count(Label.id)).scalar_subquery() + 40))


def change_without_key(session: Session) -> None:
    session.get_one(TicketByCode, "A").seat = 2


def change_key(session: Session) -> None:
    session.get_one(Country, "NL").code = "BE"


def change_child_class(session: Session) -> None:
    session.get_one(Book, 2).pages = 7


def move_by_column(session: Session) -> None:
    session.get_one(Product, 1).category_id = 2


def move_by_relationship(session: Session) -> None:
    session.get_one(Product, 1).category = session.get_one(Category, 2)


def to_no_category(session: Session) -> None:
    session.get_one(Product, 1).category_id = None


def add_label(session: Session) -> None:
    product = session.get_one(Product, 1)
    product.labels.append(session.get_one(Label, 2))


def add_new_label(session: Session) -> None:
    product = session.get_one(Product, 1)
    product.labels.append(Label())


def insert_linked(session: Session) -> None:
    session.add(Category(id=9, labels=[Label()]))  # The category first: its label has no key yet.


def remove_label(session: Session) -> None:
    product = session.get_one(Product, 1)
    product.labels.clear()


def delete_labelled(session: Session) -> None:
    session.delete(session.get_one(Product, 1))


def orphan(session: Session) -> None:
    category = session.get_one(Category, 1)
    category.notes.clear()


def children_without_parent(session: Session) -> None:
    category = session.get_one(Category, 1)
    session.delete(category)


def write_only(session: Session) -> None:
    session.get_one(Category, 2).visits.add(Visit(id=9))


def merge(session: Session) -> None:
    session.merge(Product(id=1, price=9))


def no_safe_key(session: Session) -> None:
    session.add(Reading(at=datetime(2026, 1, 1)))


CHANGED: dict[Action, tuple[set[str], set[str]]] = {
    insert: ({"label:3"}, {"label"}),
    change: ({"product:1", "category:1;kind:plain", "price:1", "price:5"}, {"product"}),
    change_unchanged: (set(), set()),
    delete: ({"country:NL"}, {"country"}),
    change_expired: (
        {"product:1", "category:1;kind:plain", "category:2;kind:plain", "price:1", "price:5"},
        {"product"},
    ),
    delete_expired: ({"visit:1"}, {"visit"}),
    change_by_sql: ({"product:1", "category:1;kind:plain", "price:1", "price:42"}, {"product"}),
    insert_by_sql: ({"product:9", "price:42"}, {"product"}),
    change_without_key: ({"ticket", "ticket:*"}, {"ticket"}),
    change_key: ({"country:NL", "country:BE"}, {"country"}),
    change_child_class: ({"product:2", "book:2", "category:1;kind:book", "price:1"}, {"book"}),
    move_by_column: ({"product:1", "category:1;kind:plain", "category:2;kind:plain", "price:1"}, {"product"}),
    move_by_relationship: ({"product:1", "category:1;kind:plain", "category:2;kind:plain", "price:1"}, {"product"}),
    to_no_category: ({"product:1", "category:1;kind:plain", "price:1"}, {"product"}),
    add_label: ({"product:1", "category:1;kind:plain", "price:1", "label:2"}, {"product_label"}),
    add_new_label: ({"product:1", "category:1;kind:plain", "price:1", "label:3"}, {"label", "product_label"}),
    insert_linked: ({"category:9", "label:3"}, {"category", "label", "category_label"}),
    remove_label: ({"product:1", "category:1;kind:plain", "price:1", "label:1"}, {"product_label"}),
    delete_labelled: ({"product:1", "category:1;kind:plain", "price:1", "label:1"}, {"product", "product_label"}),
    orphan: ({"note.category_id:1;note.line:1"}, {"note"}),
    children_without_parent: (
        {"category:1", "product:1", "product:2", "book:2", "note.category_id:1;note.line:1"}
        | {"category:1;kind:plain", "category:1;kind:book", "price:1"},
        {"category", "product", "note"},
    ),
    write_only: ({"visit:9"}, {"visit"}),
    merge: ({"product:1", "category:1;kind:plain", "price:1", "price:9"}, {"product"}),
    no_safe_key: ({"reading", "reading:*"}, {"reading"}),
}


@pytest.mark.parametrize("action", [pytest.param(one, id=one.__name__) for one in CHANGED])
def test_what_a_flush_changes(see: Callable[[Action], Seen], action: Action) -> None:
    """The rows as they were and as they are, what was linked to them, and the tables that were written."""
    seen = see(action)
    rows, tables = CHANGED[action]
    assert seen.rows == rows
    assert seen.written == tables


def test_a_session_that_is_not_followed(see: Callable[[Action], Seen]) -> None:
    """Gathers nothing."""

    def alone(session: Session) -> None:
        del session.info[CHANGES]
        session.add(Label())

    assert see(alone).rows == set()


def test_templates_are_checked() -> None:
    """Against the columns of the class, when it is first used."""

    class Wrong(Base):
        __tablename__ = "wrong"
        __cache_tags__ = ("category:{category}",)
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = sa.create_engine("sqlite://")
    try:
        with Session(engine) as session:
            Base.metadata.create_all(session.connection())
            session.info[CHANGES] = Changes()
            session.add(Wrong(id=1))
            with pytest.raises(TagTemplateError, match=r"__cache_tags__ of .*Wrong names 'category'"):
                session.flush()
    finally:
        engine.dispose()
        Base.metadata.remove(Wrong.__table__)  # type: ignore[arg-type]
        Base.registry._dispose_cls(Wrong)


# --- what a statement names

bulk: dict[str, tuple[Action, set[str]]] = {
    "update": (lambda session: session.execute(sa.update(Label).values(name="x")), {"label"}),
    "delete": (lambda session: session.execute(sa.delete(Label).where(Label.id == 2)), {"label"}),
    "insert": (lambda session: session.execute(sa.insert(Label), [{"id": 8}, {"id": 9}]), {"label"}),
    "a table": (lambda session: session.execute(labels_of_products.delete()), {"product_label"}),
    "core": (lambda session: session.connection().execute(sa.update(Label).values(name="x")), {"label"}),
    "bulk_save_objects": (lambda session: session.bulk_save_objects([Label(id=8)]), {"label"}),
    "bulk_insert_mappings": (lambda session: session.bulk_insert_mappings(sa.inspect(Label), [{"id": 8}]), {"label"}),
    "from a select": (
        lambda session: session.execute(sa.insert(Visit).from_select(["id"], sa.select(Label.id + 100))),
        {"visit"},
    ),
    "a child class": (lambda session: session.execute(sa.update(Book).values(pages=1)), {"book"}),
    "returning": (lambda session: session.scalars(sa.insert(Label).values(id=8).returning(Label)).all(), {"label"}),
    "a subquery": (
        lambda session: session.execute(
            sa.update(Label).where(Label.id.in_(sa.select(Product.id))).values(name="x"),
            execution_options={"synchronize_session": False},
        ),
        {"label"},
    ),
    "a select": (lambda session: session.scalars(sa.select(Label)).all(), set()),
    "text": (lambda session: session.execute(sa.text("update label set name = 'x'")), set()),
}


@pytest.mark.parametrize("name", bulk)
def test_what_a_statement_writes(see: Callable[[Action], Seen], name: str) -> None:
    """However it reaches the database, but for text."""
    action, tables = bulk[name]
    assert see(action).written == tables


def test_a_statement_that_names_no_rows_changes_all_of_them() -> None:
    """So it invalidates what was built from any row of the table."""
    engine = sa.create_engine("sqlite://")
    named = named_by(sa.update(Label).values(name="x").compile(engine))
    assert named.tags_written() == {"label", "label:*"}
    assert named.tags_written({"label"}) == {"label"}


POSTGRES = postgresql.dialect()


@pytest.mark.parametrize(
    "statement",
    [
        sa.select(sa.delete(Label).returning(Label.id).cte()),
        postgresql.insert(Label).values(id=1).on_conflict_do_update(index_elements=["id"], set_={"name": "x"}),
    ],
    ids=["in a CTE", "upsert"],
)
def test_what_a_statement_of_postgresql_writes(statement: sa.Executable) -> None:
    """Though it reads as a select, or as an insert."""
    assert named_by(statement.compile(dialect=POSTGRES)).written == {"label"}  # type: ignore[attr-defined]


def test_a_table_without_a_key_has_no_rows_to_look_up() -> None:
    """Whatever it is asked for."""
    keyless = Table("keyless", sa.MetaData(), sa.Column("x", sa.Integer))
    assert set(named_by(sa.select(keyless).where(keyless.c.x == 1).compile()).tags_read({"x_1": 1})) == {"keyless"}


def test_what_is_no_query_names_nothing() -> None:
    """The definition of a table; and what was given to the driver may read anything."""
    assert not named_by(sa.schema.CreateTable(labels_of_products).compile()).unseen  # type: ignore[arg-type]
    assert named_by(None).unseen


reads: dict[str, tuple[Action, list[set[str]]]] = {
    "get": (lambda session: session.get(Label, 1), [{"label:1", "label:*"}]),
    "get of nothing": (lambda session: session.get(Label, 99), [{"label:99", "label:*"}]),
    "get by two columns": (lambda session: session.get(Note, (1, 1)), [{"note.category_id:1;note.line:1", "note:*"}]),
    "get by a UUID": (lambda session: session.get(Ticket, TICKET), [{f"ticket:{TICKET}", "ticket:*"}]),
    "get by a text": (lambda session: session.get(Country, "NL"), [{"country"}]),
    "get by a truth": (lambda session: session.get(Label, True), [{"label"}]),
    "by key, and more": (
        lambda session: session.scalars(sa.select(Label).where(1 == Label.id, Label.name != "x")).all(),  # noqa: SIM300
        [{"label:1", "label:*"}],
    ),
    "by some keys": (
        lambda session: session.scalars(sa.select(Label).where(Label.id.in_([1, 2]))).all(),
        [{"label"}],
    ),
    "by half a key": (lambda session: session.scalars(sa.select(Note).where(Note.line == 1)).all(), [{"note"}]),
    "by key or not": (
        lambda session: session.scalars(sa.select(Label).where(sa.or_(Label.id == 1, Label.name == "x"))).all(),
        [{"label"}],
    ),
    "not by key": (lambda session: session.scalars(sa.select(Label).where(Label.id != 1)).all(), [{"label"}]),
    "by a key that is computed": (
        lambda session: session.scalars(sa.select(Label).where(Label.id + 1 == 2)).all(),
        [{"label"}],
    ),
    "by key, with a subquery": (
        lambda session: session.execute(
            sa.select(Label.id, sa.select(sa.func.count(Label.id)).scalar_subquery()).where(Label.id == 1)
        ).all(),
        [{"label"}],
    ),
    "by key, of an alias beside it": (
        lambda session: session.execute(
            sa.select(Label.id, (other := aliased(Label)).id).where(Label.id == 1, other.name == Label.name)
        ).all(),
        [{"label"}],
    ),
    "all": (lambda session: session.scalars(sa.select(Label)).all(), [{"label"}]),
    "a count": (lambda session: session.scalar(sa.select(sa.func.count()).select_from(Label)), [{"label"}]),
    "joined eager": (
        lambda session: session.scalars(sa.select(Product).options(joinedload(Product.labels))).unique().all(),
        [{"product", "product_label", "label"}],
    ),
    "get, joined eager": (
        lambda session: session.get(Product, 1, options=[joinedload(Product.labels)]),
        [{"product", "product_label", "label"}],
    ),
    "selectin eager": (
        lambda session: session.scalars(sa.select(Category).options(selectinload(Category.notes))).all(),
        [{"category"}, {"note"}],
    ),
    "lazy many-to-one": (
        lambda session: session.get_one(Product, 1).category,
        [{"product:1", "product:*"}, {"category:1", "category:*"}],
    ),
    "lazy collection": (
        lambda session: list(session.get_one(Category, 1).notes),
        [{"category:1", "category:*"}, {"note"}],
    ),
    "a child class": (lambda session: session.get(Book, 2), [{"book", "product"}]),
    "exists, CTE, union": (
        lambda session: session.execute(
            sa.union_all(
                sa.select(Label.id).where(sa.exists().where(Note.line == Label.id)),
                sa.select(sa.select(Visit.id).cte().c.id),
            )
        ).all(),
        [{"label", "note", "visit"}],
    ),
    "text": (lambda session: session.execute(sa.text("select 1 from label")).all(), [set()]),
    "of the driver": (lambda session: session.connection().exec_driver_sql("select 1 from label").all(), [set()]),
}


@pytest.mark.parametrize("name", reads)
def test_what_a_statement_reads(see: Callable[[Action], Seen], name: str) -> None:
    """Rows, where it asks for keys; tables, where it does not; nothing, where it cannot be seen."""
    action, statements = reads[name]
    assert see(action).statements == statements


def test_the_same_statement_with_another_key(see: Callable[[Action], Seen]) -> None:
    """What is kept of a statement has no keys in it."""
    seen = see(lambda session: [session.get(Label, 1), session.get(Label, 2)])
    assert seen.statements == [{"label:1", "label:*"}, {"label:2", "label:*"}]


# --- how isolated it is


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, "serializable"),
        ({"isolation_level": "READ UNCOMMITTED"}, "read uncommitted"),
        ({"isolation_level": "AUTOCOMMIT"}, "autocommit"),
        ({"execution_options": {"isolation_level": "READ UNCOMMITTED"}}, "read uncommitted"),
        ({"execution_options": {"isolation_level": "AUTOCOMMIT"}}, "autocommit"),
    ],
)
def test_the_isolation_of_sqlite(options: dict[str, Any], level: str) -> None:
    """Is as the engine was told, or as the database is by itself."""
    engine = sa.create_engine("sqlite://", **options)
    try:
        with engine.connect() as connection:
            assert isolation_of(connection) == level
    finally:
        engine.dispose()


def test_an_isolation_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is taken for the one whose rules are safe everywhere."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        for unknown in ("SNAPSHOT", None):
            monkeypatch.setattr(connection.dialect, "default_isolation_level", unknown)
            assert isolation_of(connection) == "repeatable read"
    engine.dispose()
