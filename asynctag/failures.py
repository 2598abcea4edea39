"""What is logged where a window fails and has a fallback.

Whoever asks for a page may bring that about, as often as they like: each time is a line, and its traceback is logged
once a minute.
"""

import logging
import reprlib
import time
from collections.abc import Callable
from math import inf

logger = logging.getLogger("asynctag")

#: Seconds between two tracebacks of one kind of exception.
SILENCE = 60.0

#: So many kinds are remembered. Past that all are forgotten, and have their tracebacks logged anew.
MAX_KINDS = 1000

#: Writes an exception on the line that has no traceback.
_shortly = reprlib.Repr()
_shortly.maxother = 200


class Failures:
    """Those of one window, or of those whose bodies stand in the templates of an environment."""

    __slots__ = ("_silent_until", "clock")

    def __init__(self) -> None:
        #: Gives seconds, which never go back.
        self.clock: Callable[[], float] = time.monotonic
        self._silent_until: dict[tuple[str, type[Exception]], float] = {}

    def warn(self, what: str, error: Exception, *, which: str = "") -> None:
        """Log that `what` failed by `error`, with the traceback unless one of that type was logged within a minute.

        `which` tells windows apart that are called the same.
        """
        now, kind = self.clock(), (which or what, type(error))
        if now < self._silent_until.get(kind, -inf):
            logger.warning(
                "%s failed: its fallback is served, as after the last traceback: %s", what, _shortly.repr(error)
            )
            return
        if len(self._silent_until) >= MAX_KINDS:
            self._silent_until.clear()
        self._silent_until[kind] = now + SILENCE
        logger.warning("%s failed: its fallback is served", what, exc_info=error)
