"""Work that nobody waits for, in a task group of the opened cache."""

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token

from asynctag.errors import LifecycleError
from asynctag.scope import current_scope


class Background:
    """A task group for each event loop in which the cache was opened.

    Tasks run in the context of whoever opened the cache, never of whoever caused them: neither the
    scope nor the request of a caller reaches them.
    """

    def __init__(self) -> None:
        self._groups: dict[object, tuple[TaskGroup, Context]] = {}

    async def open(self) -> None:
        loop = current_token().native_token
        if loop in self._groups:
            raise LifecycleError("this cache is open already in this event loop: open it once, as the program starts")
        context = copy_context()
        context.run(current_scope.set, None)
        self._groups[loop] = (await anyio.create_task_group().__aenter__(), context)

    async def close(self) -> None:
        opened = self._groups.pop(current_token().native_token, None)
        if opened is None:
            raise LifecycleError("this cache is not open in this event loop: it cannot be closed here")
        group, _ = opened
        group.cancel_scope.cancel()
        await group.__aexit__(None, None, None)

    @property
    def is_open(self) -> bool:
        """Whether the cache is open in the event loop that runs here."""
        return bool(self._groups) and current_token().native_token in self._groups

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work()`, which must not raise, in this event loop, where the cache is open.

        It takes its first step also where the cache is closed meanwhile: anyio sees to that.
        """
        group, context = self._groups[current_token().native_token]
        context.copy().run(lambda: group.start_soon(work))
