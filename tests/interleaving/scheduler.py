"""Enumerates the interleavings of a few tasks over real code.

A *process* is a task that parks at scheduling points. Between two points it runs alone, so that a
sequence of choices (which process runs next, which is cancelled) determines an execution. All
sequences are tried, depth first, each by running it from the start. Two sequences that lead to the
same state continue alike: where a fingerprint of the state is given, the second is not followed.
Nothing here knows about caches; nothing waits for time to pass.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

import anyio
import trio

#: More turns of the event loop than any step takes, unless it runs in circles. A step that awaits real I/O needs many.
MAX_TURNS = 1_000_000


class Status(Enum):
    READY = "not begun"
    RUNNING = "running"
    PARKED = "parked at a point"
    WAITING = "waiting for another process"
    DONE = "done"


class Process:
    """One task of an execution, and where it stands."""

    def __init__(
        self, name: str, work: Callable[[], Coroutine[Any, Any, object]], *, cancellable: bool, kind: str | None
    ) -> None:
        self.name = name
        self.kind = kind or name
        self.work = work
        self.status = Status.READY
        self.at = "begins"
        self.may_be_cancelled = cancellable
        self.was_cancelled = False
        self.waits_for: object = None
        self.coroutine: Coroutine[Any, Any, object] | None = None
        self.released: anyio.Event | None = None
        self.cancel: Callable[[], object] = _not_started

    def __repr__(self) -> str:
        return f"<{self.name}: {self.status.value}, {self.at}>"


def _not_started() -> None:
    raise AssertionError("a process that has not begun cannot be cancelled")


_current: ContextVar[Process | None] = ContextVar("current_process", default=None)


def current_process() -> Process:
    process = _current.get()
    assert process is not None, "a scheduling point outside any process"
    return process


class Choice(Enum):
    RUN = "run"
    CANCEL = "cancel"


#: What to do next, by the name of the process: the same schedule can be run on another backend.
Step = tuple[Choice, str]


class Violation(AssertionError):  # noqa: N818 - what was seen, not what went wrong here
    """An execution did what must not be. The message has its schedule, a step a line."""

    def __init__(self, scenario: str, problems: list[str], schedule: list[str]) -> None:
        steps = "\n".join(f"  {line}" for line in schedule)
        super().__init__(f"{scenario}: {'; '.join(problems)}\nthe schedule:\n{steps}")
        self.problems = problems
        self.schedule = schedule


class Runtime(Protocol):
    """What differs between asyncio and trio."""

    cancelled: type[BaseException]

    async def turn(self) -> None: ...
    def spawn(self, body: Callable[[], Awaitable[None]]) -> Callable[[], object]: ...


class OnAsyncio:
    cancelled = asyncio.CancelledError

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def turn(self) -> None:
        await asyncio.sleep(0)

    def spawn(self, body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        task = asyncio.get_running_loop().create_task(body())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel


class OnTrio:
    cancelled = trio.Cancelled

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    def spawn(self, body: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await body()

        self._nursery.start_soon(scoped)
        return scope.cancel


class Execution:
    """One run of a few processes, step by step."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.processes: list[Process] = []
        self.problems: list[str] = []
        self.log: list[str] = []
        #: What they asked of what they share, and what they were told.
        self.asked: list[str] = []
        #: While set, points do not park: what is before the schedule, or after it.
        self.passing = False
        #: Asked of each process in its own context when it ends.
        self.at_end_of_process: Callable[[], str | None] = lambda: None

    # --- what processes call ---------------------------------------------------------------------

    def add(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, object]],
        *,
        cancellable: bool = False,
        kind: str | None = None,
    ) -> Process:
        assert all(process.name != name for process in self.processes), name
        process = Process(name, work, cancellable=cancellable, kind=kind)
        self.processes.append(process)
        return process

    def adopt(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> tuple[Process, Callable[[], Any]]:
        """A process that the code under test starts, and what it is to start in place of `work`."""
        number = 1 + sum(process.name.startswith(name) for process in self.processes)
        process = self.add(f"{name} {number}", work)
        process.status = Status.RUNNING
        return process, lambda: self._run(process)

    async def point(self, at: str) -> None:
        """Park until the scheduler lets this process go on."""
        if self.passing:
            return
        process = current_process()
        process.at, process.status, process.released = at, Status.PARKED, anyio.Event()
        try:
            await process.released.wait()
        finally:
            process.status = Status.RUNNING

    def note(self, text: str) -> None:
        """Say in the schedule what came of the step that is being run."""
        process = _current.get()
        self.log.append(f"    {process.name if process else 'driver'}: {text}")

    def problem(self, text: str) -> None:
        process = _current.get()
        self.problems.append(f"{process.name}: {text}" if process else text)

    # --- what the exploration calls ----------------------------------------------------------------

    def options(self) -> list[Step]:
        runs = [(Choice.RUN, p.name) for p in self.processes if p.status in (Status.READY, Status.PARKED)]
        if not runs:
            return []  # those that wait now, wait for ever: nobody promises a cancellation
        cancels = [
            (Choice.CANCEL, p.name)
            for p in self.processes
            if p.may_be_cancelled and p.status in (Status.PARKED, Status.WAITING)
        ]
        return runs + cancels

    async def take(self, step: Step) -> None:
        choice, name = step
        process = next(p for p in self.processes if p.name == name)
        if choice is Choice.CANCEL:
            where = "waits for a flight" if process.status is Status.WAITING else f"is about to: {process.at}"
            self.log.append(f"{name}: cancelled while it {where}")
            process.may_be_cancelled, process.was_cancelled = False, True
            process.status = Status.RUNNING
            process.cancel()
        else:
            self.log.append(f"{name}: {process.at}")
            self._release(process)
        await self.settle()

    def _release(self, process: Process) -> None:
        if process.status is Status.READY:
            process.cancel = self.runtime.spawn(lambda: self._run(process))
        else:
            assert process.released is not None
            process.released.set()
        process.status = Status.RUNNING

    async def _run(self, process: Process) -> None:
        _current.set(process)
        try:
            process.coroutine = process.work()
            await process.coroutine
        except self.runtime.cancelled:
            if not process.was_cancelled:
                self.problem("was cancelled, though nobody cancelled it")
            raise
        except Exception as error:
            self.problem(f"raised {error!r}")
        else:
            if process.was_cancelled:
                self.problem("swallowed its cancellation")
        finally:
            left = self.at_end_of_process()
            if left is not None:
                self.problem(left)
            process.status, process.coroutine = Status.DONE, None

    async def settle(self) -> None:
        """Until nobody runs: each process is parked, waits for another, or is done."""
        for _ in range(MAX_TURNS):
            if not any(process.status is Status.RUNNING for process in self.processes):
                return
            await self.runtime.turn()
        self.problem(f"runs in circles: {[p for p in self.processes if p.status is Status.RUNNING]}")

    async def run_alone(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a process from its begin to its end, before the schedule or after it."""
        self.passing = True
        process = self.add(name, work)
        self._release(process)
        await self.settle()
        if process.status is not Status.DONE:
            self.problem(f"{name} hangs")
        self.passing = False

    async def drain(self) -> None:
        """Cancel all that still runs, so that nothing of this execution is left."""
        self.passing = True
        for process in self.processes:
            if process.cancel is _not_started:
                # Started by the code under test: it runs to its end. What it waits for is cancelled, and wakes it.
                if process.status is Status.PARKED and process.released is not None:
                    process.status = Status.RUNNING
                    process.released.set()
            elif process.status in (Status.PARKED, Status.WAITING):
                process.was_cancelled, process.status = True, Status.RUNNING
                process.cancel()
                if process.released is not None:  # one that shields itself goes on to its end
                    process.released.set()
        await self.settle()


class Run(NamedTuple):
    """An execution: its schedule, which can be run on another backend, and what was asked in it."""

    schedule: tuple[Step, ...]
    asked: tuple[str, ...]


@dataclass
class Explored:
    """How much was explored, and by which executions: to their ends, or to a state from which others had gone on."""

    states: int = 0
    steps: int = 0
    complete: bool = True
    runs: list[Run] = field(default_factory=list)

    @property
    def executions(self) -> int:
        return len(self.runs)

    def different(self) -> list[Run]:
        """Those of which none was asked as another, or as another began."""
        last = {run.asked: run for run in self.runs}
        begun = {asked[:length] for asked in last for length in range(len(asked))}
        return [run for asked, run in last.items() if asked not in begun]


class Setting(Protocol):
    """What an exploration runs again and again."""

    name: str
    execution: Execution

    async def begin(self) -> None: ...
    async def end(self, *, finished: bool) -> None: ...
    def fingerprint(self) -> Hashable | None: ...


class Stage(Protocol):
    """Makes a setting afresh for each execution, as an async context manager."""

    def __call__(self, runtime: Runtime) -> Any: ...


async def explore(stage: Stage, runtime: Runtime, *, limit: int | None = None) -> Explored:
    """Run every interleaving. Raises `Violation` for the first that does what must not be.

    `limit` is the most executions that are run; `complete` says whether they were all.
    """
    explored = Explored()
    seen: set[int] = set()
    todo: list[tuple[Step, ...]] = [()]
    while todo:
        if limit is not None and explored.executions >= limit:
            explored.complete = False
            break
        prefix = todo.pop()
        async with stage(runtime) as setting:
            taken = await _run_one(setting, prefix, seen, todo)
        explored.runs.append(Run(tuple(taken), tuple(setting.execution.asked)))
        explored.steps += len(taken)
    explored.states = len(seen)
    return explored


async def _run_one(
    setting: Setting, prefix: tuple[Step, ...], seen: set[int], todo: list[tuple[Step, ...]]
) -> list[Step]:
    execution, taken = setting.execution, []
    await setting.begin()
    while True:
        if execution.problems:
            break
        options = execution.options()
        if len(taken) >= len(prefix):
            mark = setting.fingerprint()
            if mark is not None:
                mark = hash(mark)
                if mark in seen:
                    await _finish(setting, finished=False)
                    return taken
                seen.add(mark)
            if not options:
                break
            todo.extend((*taken, option) for option in reversed(options[1:]))
            step = options[0]
        else:
            step = prefix[len(taken)]
            assert step in options, f"the execution is not determined by its schedule: {step} of {options}"
        await execution.take(step)
        taken.append(step)
    await _end(setting)
    return taken


async def _end(setting: Setting) -> None:
    """End an execution in which nobody can go on."""
    execution = setting.execution
    hanging = [p.name for p in execution.processes if p.status is Status.WAITING]
    if hanging and not execution.problems:
        execution.problems.append(f"{' and '.join(hanging)} wait for ever")
    await _finish(setting, finished=not execution.problems)


async def _finish(setting: Setting, *, finished: bool) -> None:
    execution = setting.execution
    await setting.end(finished=finished)
    if execution.problems:
        raise Violation(setting.name, execution.problems, execution.log)


@dataclass
class Replayed:
    """One execution by a given schedule: what happened, in how many steps, and those that could not be taken."""

    log: list[str]
    steps: int = 0
    passed_over: list[Step] = field(default_factory=list)


async def replay(stage: Stage, runtime: Runtime, schedule: Sequence[Step]) -> Replayed:
    """Run one schedule, then what is left, and say what happened. A process that cannot go on is passed over."""
    async with stage(runtime) as setting:
        execution = setting.execution
        replayed = Replayed(execution.log)
        await setting.begin()
        for step in schedule:
            if execution.problems:
                break
            if step in execution.options():
                await execution.take(step)
                replayed.steps += 1
            else:
                replayed.passed_over.append(step)
        while not execution.problems and (options := execution.options()):
            await execution.take(options[0])
            replayed.steps += 1
        await _end(setting)
        return replayed


def explore_on_asyncio(stage: Stage, *, limit: int | None = None) -> Explored:
    async def main() -> Explored:
        return await explore(stage, OnAsyncio(), limit=limit)

    return asyncio.run(main())


def explore_on_trio(stage: Stage, *, limit: int | None = None) -> Explored:
    async def main() -> Explored:
        # Not by the nursery's own group of exceptions: a violation is raised as it is.
        failed: Violation | None = None
        explored = Explored()
        async with trio.open_nursery() as nursery:
            try:
                explored = await explore(stage, OnTrio(nursery), limit=limit)
            except Violation as violation:
                failed = violation
        if failed is not None:
            raise failed
        return explored

    return trio.run(main)
