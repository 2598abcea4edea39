"""The names of tables and rows as tags: what writes say and what reads say is spelt in one place."""

import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.selectable import TableClause

from asynctag.errors import ConfigurationError
from asynctag.integrations.outbox import IS_OUTBOX
from asynctag.tags import check_tag, tag

#: A mapped class, or a table.
Source: TypeAlias = "type[Any] | TableClause"

#: In place of a key: every row.
EVERY_ROW: Final = "*"

_SPECIAL = re.compile(r"[%;:*\x00-\x1f\x7f-\x9f]")


def table_tag(source: Source) -> str:
    """The tag of what was read from a table without naming rows: `table_tag(Product) == "product"`.

    `source` is a mapped class or a table; one in a schema gives `"shop.product"`. Raises `ConfigurationError` for
    anything else.
    """
    return name_of(table_of(source))


def table_tags(source: Source) -> tuple[str, ...]:
    """The tags to invalidate when any rows of a table may have changed: those of its lists, and of every row."""
    name = table_tag(source)
    return name, every_row(name)


def row_tag(source: Source, *key: object) -> str:
    """The tag of one row: `row_tag(Product, 635) == "product:635"`.

    `key` are the values of the primary key's columns, in their order. A key of several columns gives
    `"order_line.line:2;order_line.order_id:5"`. Raises `InvalidTagError` for a key that has no safe text, and
    `ConfigurationError` for one of another length than the table's.
    """
    table = table_of(source)
    columns = [column.key for column in table.primary_key]
    if not columns or len(columns) != len(key):
        raise ConfigurationError(
            f"row_tag() was given {len(key)} values for a row of {table.name!r}, whose primary key is"
            f" {', '.join(columns) or 'none: its rows have no names. Use table_tag()'}"
        )
    return row(name_of(table), columns, key)


def row_tags(source: Source, *key: object) -> tuple[str, ...]:
    """The tags of a value that was built from one row: `("product:635", "product:*")`.

    The second goes when a statement such as `update(Product)` changes rows without naming them.
    """
    return row_tag(source, *key), every_row(table_tag(source))


def table_of(source: Source) -> TableClause:
    if isinstance(source, TableClause):
        return source
    mapper = sa.inspect(source, raiseerr=False)
    if isinstance(mapper, Mapper) and isinstance(mapper.local_table, TableClause):
        return mapper.local_table
    raise ConfigurationError(f"{source!r} is no mapped class and no table: give the class, as in table_tag(Product)")


def name_of(table: TableClause) -> str:
    return check_tag(_SPECIAL.sub(_percent, getattr(table, "fullname", table.name)))


def is_outbox(table: object) -> bool:
    """Whether it holds what is to be invalidated: nothing cached depends on that."""
    return isinstance(table, sa.Table) and IS_OUTBOX in table.info


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def every_row(name: str) -> str:
    return f"{name}:{EVERY_ROW}"


def row(name: str, columns: Sequence[str], key: Sequence[object]) -> str:
    texts = [tag(key=value).removeprefix("key:") for value in key]
    if len(texts) == 1:
        return check_tag(f"{name}:{'%2A' if texts[0] == EVERY_ROW else texts[0]}")
    named = zip(columns, texts, strict=True)
    return check_tag(";".join(sorted(f"{name}.{_SPECIAL.sub(_percent, column)}:{text}" for column, text in named)))
