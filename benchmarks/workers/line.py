"""A line of JSON in, a line of JSON out, until the input ends."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any


def serve(
    commands: object,
    start: Callable[[], Awaitable[None]] | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Answer `{"ask": command, ...}` with `{"result": ...}` or `{"error": ...}`. What is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with asyncio.Runner(loop_factory=loop_factory) as runner:

        async def answer(asked: dict[str, Any]) -> Any:
            return await getattr(commands, asked.pop("ask"))(**asked)

        async def begin() -> None:
            if start is not None:
                await start()

        runner.run(begin())
        for line in sys.stdin:
            try:
                said: dict[str, Any] = {"result": runner.run(answer(json.loads(line)))}
            except Exception as error:
                said = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(said) + "\n")
