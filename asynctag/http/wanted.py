"""Which paths may have a stored response in this process: told at once, and wrong on one side only."""

from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend

#: So many paths are told apart, in bytes. Those of one number count as one.
_SLOTS = 1 << 18

_on: WeakKeyDictionary[Backend, "Wanted"] = WeakKeyDictionary()


class Wanted:
    """The paths of which somebody ever wanted a response cached, in a backend of this process, by whatever middleware.

    A path that is not among them has nothing stored. One that is may have nothing either.
    """

    __slots__ = ("_silent", "_wanted")

    def __init__(self) -> None:
        self._wanted = bytearray(_SLOTS)
        self._silent = bytearray(_SLOTS)

    def __contains__(self, path: str) -> bool:
        return self._wanted[hash(path) % _SLOTS] == 1

    def add(self, path: str) -> None:
        self._wanted[hash(path) % _SLOTS] = 1

    def is_silent(self, path: str) -> bool:
        """Whether nobody did when it, or one of the same number, was asked for before."""
        return self._silent[hash(path) % _SLOTS] == 1

    def note_silence(self, path: str) -> None:
        self._silent[hash(path) % _SLOTS] = 1


def wanted_on(backend: Backend) -> Wanted | None:
    """Those of `backend`; None where other processes store there too."""
    if not backend.in_process:
        return None
    wanted = _on.get(backend)
    return wanted if wanted is not None else _on.setdefault(backend, Wanted())
