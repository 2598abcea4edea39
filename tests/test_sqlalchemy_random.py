"""Random changes by sessions of SQLAlchemy: after each commit, what is cached is what the database says."""

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, joinedload, selectinload
from sqlalchemy.pool import NullPool, StaticPool

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from asynctag.integrations.sqlalchemy import UnitsOfWork, row_tags
from tests.shop import Base, Book, Category, Item, Label, Line, Node, Order, Product, product_label

#: More of them find more: `EXAMPLES=1000 make test`.
EXAMPLES = int(os.environ.get("EXAMPLES", "30"))

KEYS = (1, 2, 3)
key = st.sampled_from(KEYS)
number = st.integers(0, 3)

# --- what is read --------------------------------------------------------------------------------------


def by_key(of: type[Any], *names: str) -> dict[str, Callable[[Session], Any]]:
    def read(one: int) -> Callable[[Session], Any]:
        def run(session: Session) -> Any:
            found = session.get(of, (one, one) if of is Line else one)
            return found and [getattr(found, name) for name in names]

        return run

    return {f"{of.__name__} {one}": read(one) for one in KEYS}


READS: dict[str, Callable[[Session], Any]] = {
    **by_key(Category, "name", "favourite_id"),
    **by_key(Product, "kind", "price", "category_id"),
    **by_key(Book, "pages", "price"),
    **by_key(Label, "name"),
    **by_key(Order),
    **by_key(Line, "count"),
    **by_key(Node, "parent_id"),
    **by_key(Item, "node_id"),
    "count": lambda s: s.scalar(sa.select(sa.func.count()).select_from(Product)),
    "dear": lambda s: s.scalars(sa.select(Product.id).where(Product.price > 1).order_by(Product.id)).all(),
    "of a category": lambda s: [one.price for one in s.get(Category, 1).products] if s.get(Category, 1) else None,
    "labels": lambda s: [
        [one.id, [label.name for label in one.labels]]
        for one in s.scalars(sa.select(Product).options(selectinload(Product.labels)).order_by(Product.id))
    ],
    "labels, joined": lambda s: [
        [one.id, [label.name for label in one.labels]]
        for one in s.scalars(sa.select(Product).options(joinedload(Product.labels)).order_by(Product.id)).unique()
    ],
    "a link": lambda s: s.execute(product_label.select().filter_by(product_id=1, label_id=1)).first() is not None,
    "parent": lambda s: (one := s.get(Product, 1)) and one.category and one.category.name,
    "favourite": lambda s: (one := s.get(Category, 1)) and one.favourite and one.favourite.price,
    "lines": lambda s: (one := s.get(Order, 1)) and [line.count for line in one.lines],
    "sums": lambda s: [
        list(row)
        for row in s.execute(
            sa.select(Category.id, sa.func.sum(Product.price))
            .join(Category.products)
            .group_by(Category.id)
            .order_by(Category.id)
        )
    ],
    "exists": lambda s: s.scalar(sa.select(sa.exists().where(Book.pages > 1))),
    "tree": lambda s: s.scalars(sa.select(Node.id).order_by(Node.id)).all(),
    "items": lambda s: [list(row) for row in s.execute(sa.select(Item.id, Item.node_id).order_by(Item.id))],
}

# --- what is changed -----------------------------------------------------------------------------------

Step = Callable[[Session], Any]


def insert(of: type[Any], one: int, value: int) -> Step:
    given = {Line: {"order_id": one, "line": one}}.get(of, {"id": one})
    return lambda session: session.add(of(**given))


def delete(of: type[Any], one: int, value: int) -> Step:
    return lambda session: (found := session.get(of, (one, one) if of is Line else one)) and session.delete(found)


def change(of: type[Any], one: int, value: int) -> Step:
    name = {Product: "price", Book: "pages", Line: "count", Category: "name", Label: "name"}.get(of)
    changed: Any = str(value) if of in (Category, Label) else value

    def run(session: Session) -> None:
        found = session.get(of, (one, one) if of is Line else one)
        if found is not None and name is not None:
            setattr(found, name, changed)

    return run


def by_sql(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Product, one)
        if found is not None:
            found.price = Product.price + value  # type: ignore[assignment]

    return run


def move(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Product, one)
        if found is not None:
            found.category = session.get(Category, value)

    return run


def link(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found, label = session.get(Product, one), session.get(Label, value)
        if found is not None and label is not None:
            (found.labels.remove if label in found.labels else found.labels.append)(label)

    return run


def prefer(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Category, one)
        if found is not None:
            found.favourite = session.get(Product, value)

    return run


def orphan(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Order, one)
        if found is not None:
            found.lines = [Line(line=value)] if value else []

    return run


def grow(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        if session.get(Node, value) is not None:
            session.add(Node(id=one, parent_id=value))
            session.flush()
            session.add(Item(id=one, node_id=value))

    return run


def rename(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Label, one)
        if found is not None:
            found.id = value

    return run


def replace(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        found = session.get(Label, one)
        if found is not None:
            session.delete(found)
            session.add(Label(id=one, name=str(value)))

    return run


def bulk(of: type[Any], one: int, value: int) -> Step:
    statements: list[Any] = [
        sa.update(Product).where(Product.id >= one).values(price=value),
        sa.update(Book).values(pages=value),
        sa.delete(Line).where(Line.line == one),
        sa.insert(Label).values(id=one, name=str(value)),
        product_label.delete().where(product_label.c.label_id == one),
        sa.delete(Node).where(Node.id == one),
    ]
    return lambda session: session.execute(statements[(one * 4 + value) % len(statements)])


def merge(of: type[Any], one: int, value: int) -> Step:
    return lambda session: session.merge(Label(id=one, name=str(value)))


def savepoint(of: type[Any], one: int, value: int) -> Step:
    def run(session: Session) -> None:
        nested = session.begin_nested()
        change(Product, one, value)(session)
        session.flush()
        (nested.rollback if value % 2 else nested.commit)()

    return run


def flush(of: type[Any], one: int, value: int) -> Step:
    return lambda session: session.flush()


def expire(of: type[Any], one: int, value: int) -> Step:
    return lambda session: session.expire_all()


STEPS = [insert, delete, change] * 3 + [by_sql, move, link, prefer, orphan, grow, rename, replace, bulk, merge]
STEPS += [savepoint, flush, expire]
CLASSES = [Category, Product, Book, Label, Order, Line, Node, Item]
steps = st.builds(
    lambda step, of, one, value: (f"{step.__name__}({of.__name__}, {one}, {value})", step(of, one, value)),
    st.sampled_from(STEPS),
    st.sampled_from(CLASSES),
    key,
    number,
)
#: Some units of work, each with its steps and whether it is committed in the end.
works = st.lists(st.tuples(st.lists(steps, min_size=1, max_size=5), st.integers(0, 4).map(bool)), max_size=6)


class World:
    """A database, a cache, and everything that can be read, cached."""

    def __init__(self, engine: AsyncEngine, truth: sa.Engine) -> None:
        self.truth = truth
        self.cache = Cache(MemoryBackend(), default_ttl=1000)
        self.sessions = UnitsOfWork(self.cache, async_sessionmaker(engine), tag_reads=True, isolation="read committed")

    async def check(self, done: list[Any]) -> None:
        for name, read in READS.items():

            async def compute(read: Callable[[Session], Any] = read) -> Any:
                async with self.sessions() as session:
                    return await session.run_sync(read)

            with Session(self.truth) as session:
                assert await self.cache.get_or_set(name, compute) == read(session), (name, done)
        for one in KEYS:

            async def prices(one: int = one) -> list[list[int]]:
                query = sa.select(Product.id, Product.price).where(Product.category_id == one).order_by(Product.id)
                with Session(self.truth) as session:
                    return [list(row) for row in session.execute(query)]

            # By hand: a template of `__cache_tags__`, and what goes with statements that name no rows.
            tags = [f"of_category:{one}", row_tags(Product, 0)[1]]
            assert await self.cache.get_or_set(f"by hand {one}", prices, tags=tags) == await prices(), (one, done)

    async def work(self, taken: list[tuple[str, Step]], commits: bool) -> list[str]:
        done = []
        with suppress(sa.exc.SQLAlchemyError):  # SQLite or SQLAlchemy may refuse it: then it is rolled back
            async with self.sessions() as session:
                for name, step in taken:
                    done.append(name)
                    await session.run_sync(step)
                if commits:
                    await session.commit()
                    done.append("commit")
        return done


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database that each begins with."""
    path = tmp_path_factory.mktemp("filled") / "shop.sqlite3"
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=NullPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Category(id=1, products=[Product(id=1, labels=[Label(id=1)]), Book(id=2)]))
        session.add_all([Category(id=2), Label(id=2), Order(id=1, lines=[Line(line=1)]), Node(id=1)])
        session.flush()
        session.add(Item(id=1, node_id=1))
    return path


async def run(path: Path, works: list[tuple[list[tuple[str, Step]], bool]]) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=StaticPool)
    truth = sa.create_engine(f"sqlite:///{path}", poolclass=StaticPool)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def enforce(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    try:
        world, done = World(engine, truth), []
        await world.check(["the start"])
        for taken, commits in works:
            done.append(await world.work(taken, commits))
            await world.check(done)
    finally:
        await engine.dispose()
        truth.dispose()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(works)
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_what_is_cached_is_what_the_database_says(
    filled: Path, works: list[tuple[list[tuple[str, Step]], bool]]
) -> None:
    """Whatever a unit of work does, by objects and by statements, and however it ends."""
    with TemporaryDirectory() as folder:
        path = Path(shutil.copy(filled, folder))
        asyncio.run(run(path, works))
