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

try:
    import sqlalchemy  # noqa: F401
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError(
        "asynctag.integrations.sqlalchemy needs SQLAlchemy: pip install asynctag[sqlalchemy]"
    ) from error

from asynctag.integrations.sqlalchemy.names import row_tag, row_tags, table_tag, table_tags

__all__ = ["row_tag", "row_tags", "table_tag", "table_tags"]
