"""A circuit breaker: what keeps failing is left alone for a while.

After Michael Nygard, "Release It!" (2007): closed, open, and half-open with one probe.
"""

import threading
from collections import deque
from collections.abc import Callable

from asynctag.errors import BackendError


class Breaker:
    """Opens after `failures` within `window` seconds, for `pause` seconds. Then one caller may try.

    For any number of threads.
    """

    def __init__(
        self, clock: Callable[[], float], *, failures: int = 3, window: float = 10.0, pause: float = 1.0
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._window = window
        self._pause = pause
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=failures)
        self._opened: float | None = None
        self._why = ""

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def check(self) -> None:
        """Raise `BackendError` while it is open. Once the pause is over, the first who asks may try, the others not."""
        with self._lock:
            if self._opened is None:
                return
            now = self._clock()
            if now < self._opened + self._pause:
                raise BackendError(
                    f"not tried: {self._why}; the next try is in {self._opened + self._pause - now:.1f} s"
                )
            self._opened = now  # for the others it is open until the probe has told, or for another pause

    def failed(self, why: str) -> None:
        with self._lock:
            now = self._clock()
            self._why = why
            self._recent.append(now)
            full = len(self._recent) == self._failures and now - self._recent[0] <= self._window
            if self._opened is not None or full:
                self._opened = now

    def worked(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened = None
                self._recent.clear()
