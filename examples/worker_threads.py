"""Tags from worker threads: which ways into a thread carry them, and a recipe for the one that does not.

`python worker_threads.py`
"""

import asyncio
import contextvars
from functools import partial

import anyio.to_thread

from asynctag import Cache, add_tags

cache = Cache(default_ttl=60)


def read_row(row: int) -> str:
    """Blocking code, as of a database driver. It tags whatever is being computed."""
    add_tags(f"row:{row}")
    return f"row {row}"


@cache.cached(name="through anyio")
async def through_anyio(row: int) -> str:
    # On asyncio and on trio. FastAPI runs `def` routes in the same way.
    return await anyio.to_thread.run_sync(read_row, row)


@cache.cached(name="through asyncio")
async def through_asyncio(row: int) -> str:
    return await asyncio.to_thread(read_row, row)


@cache.cached(name="through an executor, tags lost")
async def through_executor_losing_tags(row: int) -> str:
    # Don't: `run_in_executor` leaves the context behind, and in it the computation that the tags are for.
    return await asyncio.get_running_loop().run_in_executor(None, read_row, row)


@cache.cached(name="through an executor")
async def through_executor(row: int) -> str:
    # The recipe: take the context along. A raw `threading.Thread` needs the same.
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, partial(context.run, read_row, row))


async def main() -> None:
    for function in (through_anyio, through_asyncio, through_executor_losing_tags, through_executor):
        await function(1)
        found = await function.explain(1)
        print(f"{function.__name__:<30} {', '.join(sorted(found.tags)) or 'no tags'}")


if __name__ == "__main__":
    asyncio.run(main())
