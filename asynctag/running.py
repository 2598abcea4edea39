"""Windows that are filled side by side.

On asyncio they are tasks of its own: a task group of anyio, and a timeout of it for each window, would cost ten times
what a window does that need not wait. There the timeouts begin with the first round of the event loop, before which
nothing could end a window anyhow.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from asynctag.errors import WindowError

if TYPE_CHECKING:
    from asynctag.windows import Window

#: A window, and the arguments that it is called with.
Call: TypeAlias = "tuple[Window[..., Any], Mapping[str, Any]]"


class Running:
    """Windows that run, each in a copy of `context`, until the block is left: what is not done then is cancelled.

    What they give is known by their places among `calls`. One that fails gives its fallback; without one, its exception
    is raised by the next `result`, whichever that asks for.
    """

    __slots__ = ("_calls", "_context", "_failed", "_left", "_results")

    def __init__(self, calls: Sequence[Call], context: Context) -> None:
        self._calls = calls
        self._context = context
        self._results: dict[int, Any] = {}
        self._failed: BaseException | None = None
        self._left = False  # the block: how a window ends from then on is no failure

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    async def first_round(self) -> bool:
        """Let each run until it waits. Whether none of them had to."""
        raise NotImplementedError

    async def result(self, index: int) -> Any:
        """What the window gives; waits for it. Raises what any of them has raised, by then."""
        raise NotImplementedError

    def is_done(self, index: int) -> bool:
        """Whether `result` need not wait. Raises as it does."""
        if self._failed is not None:
            raise self._failed
        return index in self._results

    def _fail(self, index: int, error: BaseException) -> None:
        """Take note of a failure: it gives the fallback, if there is one."""
        if self._left:
            return
        window, _ = self._calls[index]
        if isinstance(error, Exception) and window.has_fallback:
            self._results[index] = window.instead_of(error)
        elif self._failed is None:
            self._failed = error


class _OnAsyncio(Running):
    __slots__ = ("_loop", "_tasks", "_timed_out", "_timers", "_wake")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._timed_out: set[int] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._wake: asyncio.Future[None] | None = None
        create, context = self._loop.create_task, self._context
        self._tasks = [create(window.call(arguments), context=context.copy()) for window, arguments in self._calls]
        return self

    async def first_round(self) -> bool:
        await asyncio.sleep(0)
        for index, task in enumerate(self._tasks):
            if task.done():
                self._settle(index, task)
                continue
            task.add_done_callback(partial(self._settle, index))
            timeout = self._calls[index][0].timeout
            if timeout is not None:
                self._timers.append(self._loop.call_later(timeout, self._end, index))
        return self._failed is None and len(self._results) == len(self._tasks)

    async def result(self, index: int) -> Any:
        while not self.is_done(index):
            self._wake = self._loop.create_future()
            await self._wake
        return self._results[index]

    def _end(self, index: int) -> None:
        self._timed_out.add(index)
        self._tasks[index].cancel()

    def _settle(self, index: int, task: "asyncio.Task[Any]") -> None:
        error: BaseException | None
        if task.cancelled():
            window, _ = self._calls[index]
            cancelled = WindowError(f"the window {window.name} was cancelled, by itself or by what it waits for")
            error = window.too_slow() if index in self._timed_out else cancelled
        else:
            error = task.exception()
        if error is None:
            self._results[index] = task.result()
        else:
            self._fail(index, error)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        for timer in self._timers:
            timer.cancel()
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(left)
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.exception()  # or asyncio complains that nobody has asked for it


class _OnOthers(Running):
    __slots__ = ("_group", "_wake")

    async def __aenter__(self) -> Self:
        self._wake = anyio.Event()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        for index, (window, arguments) in enumerate(self._calls):
            self._context.copy().run(self._group.start_soon, partial(self._run, index, window, arguments))
        return self

    async def _run(self, index: int, window: "Window[..., Any]", arguments: Mapping[str, Any]) -> None:
        try:
            self._results[index] = await window.call_in_time(arguments)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:
            self._fail(index, error)
        self._wake.set()

    async def first_round(self) -> bool:
        for _ in range(2):  # of the tasks that are due, the one that waits here may be the first or the last
            await checkpoint()
        return self._failed is None and len(self._results) == len(self._calls)

    async def result(self, index: int) -> Any:
        while not self.is_done(index):
            self._wake = anyio.Event()
            await self._wake.wait()
        return self._results[index]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        self._group.cancel_scope.cancel()
        if not isinstance(error, anyio.get_cancelled_exc_class()):  # the group would put it into one of its own
            kind = error = traceback = None
        await self._group.__aexit__(kind, error, traceback)


def running(calls: Sequence[Call], context: Context | None = None) -> Running:
    """`calls` side by side, to be entered; in copies of the context that runs here, without one."""
    on_asyncio = "asyncio" in sys.modules and asyncio._get_running_loop() is not None
    return (_OnAsyncio if on_asyncio else _OnOthers)(calls, context if context is not None else copy_context())
