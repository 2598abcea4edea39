"""What is said of a backend that fails: one warning a second, however many callers it fails."""

import logging
from math import inf
from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend

logger = logging.getLogger("asynctag")

#: Seconds between two warnings about one backend.
SILENCE = 1.0


class Outage:
    """The warnings about one backend in this process."""

    def __init__(self) -> None:
        self._silent_until = -inf
        self._unsaid = 0

    def warn(self, now: float, message: str, *args: object) -> None:
        """Log `message`, unless one was logged within the last second before `now`, on the backend's clock."""
        if now < self._silent_until:
            self._unsaid += 1
            return
        unsaid, self._unsaid, self._silent_until = self._unsaid, 0, now + SILENCE
        if unsaid:
            message, args = f"{message} (and %d warnings before, which were not logged)", (*args, unsaid)
        logger.warning(message, *args)


_outages: WeakKeyDictionary[Backend, Outage] = WeakKeyDictionary()


def outage_of(backend: Backend) -> Outage:
    """What all caches on `backend` share."""
    return _outages.setdefault(backend, Outage())
