"""What a computation reads tags it by itself."""

import logging
from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import InstanceState

from asynctag.backends.base import Backend
from asynctag.integrations.sqlalchemy.changes import row_tags_of, values_of_key
from asynctag.integrations.sqlalchemy.names import is_outbox, table_tag
from asynctag.integrations.sqlalchemy.statements import Named
from asynctag.names import tag_name
from asynctag.scope import Scope, gathering_scope

logger = logging.getLogger("asynctag")

#: What a statement of text says of itself: the tables that it reads.
TABLES: Final = "asynctag_tables"

#: How many different things are warned of. Statements may be made anew at each call.
_MOST_SAID: Final = 1_000

#: How many characters of a statement a message has.
_SHOWN: Final = 200

_said: set[str] = set()


def _say_once(about: str, message: str, *args: object) -> None:
    if about not in _said and len(_said) < _MOST_SAID:
        _said.add(about)
        logger.warning(message, *args)


class Reads:
    """Tags the computation in which a session was opened with what the session reads.

    Used in another one, by then it may have rows that nothing tells of: that one is not stored.
    """

    def __init__(self, namespace: str, backend: Backend) -> None:
        self._namespace = namespace
        self._backend = backend
        self._opened_in = gathering_scope()

    def statement(self, text: str, named: Named, context: Any) -> None:
        here = gathering_scope()
        if here is None or named.written:  # what a computation has written makes it one that is not stored
            return
        if here is not self._opened_in:
            here.forbid_store()
            _say_once(
                here.name,
                "%s is not stored: it reads with a session that was opened outside of it, which may have rows that "
                "nobody told it of. Open the session inside, or give it a cache and a session without tag_reads",
                here.name,
            )
            return
        tables = context.execution_options.get(TABLES)
        if named.unseen and tables is None:
            here.forbid_store()
            _say_once(
                text,
                "%s is not stored: it cannot be seen which tables this statement reads: %s. Say so with "
                ".execution_options(%s=[Product]), or write it without text",
                here.name,
                text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...",
                TABLES,
            )
            return
        tags = {tag for given in _parameters(context) for tag in named.tags_read(given)}
        tags.update(table_tag(one) for one in tables or ())
        self._gather(here, tags)

    def loaded(self, target: object) -> None:
        """A row of which the session makes an object."""
        here = gathering_scope()
        if here is not None and here is self._opened_in:
            state: InstanceState[Any] = sa.inspect(target)
            if not is_outbox(state.mapper.local_table):
                self._gather(here, row_tags_of(state.mapper, values_of_key(state)))

    def _gather(self, scope: Scope, tags: Iterable[str]) -> None:
        scope.gather({tag_name(self._namespace, one) for one in tags}, self._backend)


def _parameters(context: Any) -> list[dict[str, object]]:
    return getattr(context, "compiled_parameters", None) or [{}]
