"""What SQLAlchemy says of a real PostgreSQL, with the drivers that people use."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asynctag.integrations.sqlalchemy.statements import isolation_of
from tests.postgres.servers import Server

pytestmark = pytest.mark.anyio

LEVELS = ["read committed", "repeatable read", "serializable"]


async def levels(
    postgres: Server, driver: str, engine: dict[str, Any], session: dict[str, Any]
) -> tuple[str, str, int]:
    """What is told as a transaction begins, what the database says in it, and how many statements that took."""
    told: list[str] = []
    statements: list[str] = []
    created = create_async_engine(postgres.url_for(driver), **engine)

    class Followed(sa.orm.Session):
        pass

    @sa.event.listens_for(Followed, "after_begin")
    def began(session: Any, transaction: Any, connection: sa.Connection) -> None:
        told.append(isolation_of(connection))

    @sa.event.listens_for(created.sync_engine, "before_cursor_execute")
    def executed(*given: Any) -> None:
        statements.append(given[2])

    try:
        async with AsyncSession(created, sync_session_class=Followed) as one:
            await one.connection(**session)
            sent = len(statements)
            said = await one.scalar(sa.text("SHOW transaction_isolation"))
    finally:
        await created.dispose()
    return told[0], said, sent


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("where", ["engine", "engine's options", "session", "database"])
async def test_the_isolation_that_is_told_is_the_one_there_is(
    postgres: Server, driver: str, level: str, where: str
) -> None:
    """Wherever it was set, it is known before the first statement, and asking costs none."""
    engine: dict[str, Any] = {}
    session: dict[str, Any] = {}
    if where == "engine":
        engine = {"isolation_level": level.upper()}
    elif where == "engine's options":
        engine = {"execution_options": {"isolation_level": level.upper()}}
    elif where == "session":
        session = {"execution_options": {"isolation_level": level.upper()}}
    else:
        postgres.run(f"ALTER DATABASE postgres SET default_transaction_isolation TO '{level}'")
    assert await levels(postgres, driver, engine, session) == (level, level, 0)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_statements_that_commit_by_themselves_are_told(postgres: Server, driver: str) -> None:
    """PostgreSQL calls that read committed."""
    told, said, _ = await levels(postgres, driver, {"isolation_level": "AUTOCOMMIT"}, {})
    assert (told, said) == ("autocommit", "read committed")
