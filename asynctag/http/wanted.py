"""Which paths may have a stored response in this process: told at once, and wrong on one side only."""

from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend

#: So many paths are told apart, a power of 2. Those of one number count as one.
SLOTS = 1 << 18

#: What is known of a path: nothing; that it answered 200 and nobody wanted that cached; that somebody wanted it.
UNKNOWN, SILENT, WANTED = 0, 1, 2

#: By the hash of a path, what is known of it. A path that is not `WANTED` has nothing stored. One that is may have
#: nothing either.
Wanted = bytearray

_on: WeakKeyDictionary[Backend, Wanted] = WeakKeyDictionary()


def wanted_on(backend: Backend) -> Wanted | None:
    """What is known of the paths of which responses are stored in `backend`, by whatever middleware of this process.

    None where other processes store there too.
    """
    if not backend.in_process:
        return None
    wanted = _on.get(backend)
    return wanted if wanted is not None else _on.setdefault(backend, Wanted(SLOTS))
