"""Which paths may have a stored response in this process: told at once, and wrong on one side only."""

from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend

#: So many paths are told apart, in bytes. Those of one number count as one.
_SLOTS = 1 << 18

_on: WeakKeyDictionary[Backend, "Wanted"] = WeakKeyDictionary()


class Wanted:
    """The paths of which a response was ever stored in a backend of this process, by whatever middleware.

    A path that is not among them has nothing stored. One that is may have nothing either.
    """

    __slots__ = ("_flags",)

    def __init__(self) -> None:
        self._flags = bytearray(_SLOTS)

    def __contains__(self, path: str) -> bool:
        return self._flags[hash(path) % _SLOTS] == 1

    def add(self, path: str) -> None:
        self._flags[hash(path) % _SLOTS] = 1


def wanted_on(backend: Backend) -> Wanted | None:
    """Those of `backend`; None where other processes store there too."""
    if not backend.in_process:
        return None
    wanted = _on.get(backend)
    return wanted if wanted is not None else _on.setdefault(backend, Wanted())
