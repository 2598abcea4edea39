"""What a reader does who finds an entry with a tag that a transaction holds: `while_leased`.

Until the transaction's end nobody can know whether it is committed, so that what was there before may be served
(`serve_stale`), or its end waited for (`Wait`). Neither is for those who are in a transaction themselves, nor is
waiting for those whom others wait for: two could wait for each other.
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeGuard, get_args

from asynctag.errors import ConfigurationError
from asynctag.expiry import Seconds, seconds

#: What comes of it: the reader computes, and what it computes is not stored; or it is served what was there before.
Verdict = Literal["bypass", "serve_stale"]

#: Seconds between two looks at a tag that is waited for: at first, and at most. They double in between.
FIRST_LOOK, LAST_LOOK = 0.01, 0.16


class Held:
    """A tag that a transaction holds, as a reader met it. What was there before may still be served.

    `key` and `tag` are as they stand in the backend.
    """

    __slots__ = ("_wait", "key", "tag", "waited")

    def __init__(self, key: str, tag: str, wait: Callable[[float], Awaitable[bool]] | None) -> None:
        self.key = key
        self.tag = tag
        #: Whether it was waited for, so that the reader looks up again.
        self.waited = False
        self._wait = wait

    async def released(self, within: Seconds) -> bool:
        """Wait until the tag is let go of, or its lease has ended, for so many seconds at most. Whether it was.

        At once False where the reader must not wait: inside a computation that others may wait for. Raises
        `ConfigurationError` for a time without end.
        """
        limit = seconds(within, "released(within)")
        if self._wait is None:
            return False
        self.waited = True
        return await self._wait(limit)


class WhileLeased(Protocol):
    """A behaviour of one's own. It is asked once a read, outside of transactions, and says what the reader does."""

    async def __call__(self, held: Held, /) -> Verdict:
        """What to do about `held`: "bypass" or "serve_stale". May wait before, by `await held.released(seconds)`.

        The reader then looks up again, and does this only if there still is nothing to serve.
        """
        ...


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the transaction's end, `seconds` at most, and look up again. If that brings nothing, do `then`.

    Raises `ConfigurationError` for values that cannot be meant.
    """

    seconds: Seconds = 1.0
    then: Verdict = "bypass"

    def __post_init__(self) -> None:
        seconds(self.seconds, "Wait(seconds)", zero=False)
        if self.then not in get_args(Verdict):
            raise ConfigurationError(f'Wait(then={self.then!r}): give "bypass" or "serve_stale"')

    async def __call__(self, held: Held, /) -> Verdict:
        await held.released(self.seconds)
        return self.then


async def serve_stale(held: Held, /) -> Verdict:
    return "serve_stale"


#: By name. Nothing is asked of anybody for "bypass".
_NAMED: Final[dict[str, WhileLeased | None]] = {"bypass": None, "serve_stale": serve_stale, "wait": Wait()}

#: What `while_leased=` takes.
HowLeased = Literal["bypass", "serve_stale", "wait"] | WhileLeased


def check_while_leased(given: object, name: str) -> WhileLeased | None:
    """The behaviour that is meant; None for "bypass". Raises `ConfigurationError`."""
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]
    if _is_async(given):
        return given
    raise ConfigurationError(
        f'{name}={given!r}: give "bypass" (readers compute), "serve_stale" (what was there before the transaction), '
        f'"wait" (for its end, a second at most), Wait(seconds), or an async function of what is held'
    )


def _is_async(given: Any) -> TypeGuard[WhileLeased]:
    if isinstance(given, type):
        return False
    call = given if inspect.isroutine(given) else type(given).__call__ if callable(given) else None
    return inspect.iscoroutinefunction(call)


def serves(behaviour: WhileLeased | None) -> bool:
    """Whether it ends in serving what was there before, as far as that can be told without asking it."""
    return behaviour is serve_stale or (isinstance(behaviour, Wait) and behaviour.then == "serve_stale")


def check_verdict(verdict: object, behaviour: WhileLeased) -> Verdict:
    if verdict == "bypass" or verdict == "serve_stale":
        return "bypass" if verdict == "bypass" else "serve_stale"
    raise ConfigurationError(f'while_leased={behaviour!r} returned {verdict!r}: return "bypass" or "serve_stale"')
