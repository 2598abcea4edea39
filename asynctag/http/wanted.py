"""Which paths may have a stored response in this process: told at once, and wrong on one side only."""

from weakref import WeakKeyDictionary

from asynctag.backends.base import Backend

#: So many paths and folders are told apart, powers of 2. Those of one number count as one.
PATHS, FOLDERS = 1 << 18, 1 << 14

#: What is known of a path: nothing; that nobody wanted its response cached when it was asked for; that somebody did.
UNKNOWN, SILENT, WANTED = 0, 1, 2

#: Of a folder, how many paths were asked for of which nobody wanted the response cached: after so many, it is taken to
#: be so of those that are not known yet. And that of one, somebody did.
SILENT_FOLDER, WANTED_IN_FOLDER = 32, 255


class Wanted:
    """What is known of paths, by their hash, and of the folders they are in: a path up to its last slash.

    A path that is not `WANTED` has nothing stored. One that is may have nothing either. What a folder's byte says is a
    guess.
    """

    __slots__ = ("__weakref__", "folders", "paths")

    def __init__(self) -> None:
        self.paths = bytearray(PATHS)
        self.folders = bytearray(FOLDERS)

    def note(self, path: str, *, wanted: bool) -> None:
        """Whether somebody wanted the response cached of a path that was asked for."""
        number, folder = hash(path) % PATHS, folder_of(path)
        if wanted:
            self.paths[number] = WANTED
            self.folders[folder] = WANTED_IN_FOLDER
        elif self.paths[number] == UNKNOWN:  # somebody may have wanted it meanwhile
            self.paths[number] = SILENT
            silent = self.folders[folder]
            if silent < SILENT_FOLDER:
                self.folders[folder] = silent + 1

    def note_stored(self, path: str) -> None:
        """A response is stored at this path now."""
        self.paths[hash(path) % PATHS] = WANTED


def folder_of(path: str) -> int:
    return hash(path.rpartition("/")[0]) % FOLDERS


_on: WeakKeyDictionary[Backend, Wanted] = WeakKeyDictionary()


def wanted_on(backend: Backend) -> Wanted | None:
    """What is known of the paths of which responses are stored in `backend`, by whatever middleware of this process.

    None where other processes store there too.
    """
    if not backend.in_process:
        return None
    wanted = _on.get(backend)
    return wanted if wanted is not None else _on.setdefault(backend, Wanted())
