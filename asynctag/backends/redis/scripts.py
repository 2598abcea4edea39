"""The scripts of the protocol: Lua files beside this one, each with the journal's functions before it."""

import hashlib
from importlib.resources import files

#: Never `no-writes`: a demoted master refuses such a script (READONLY) instead of answering from an old journal, and
#: one that has lost its replicas refuses too where `min-replicas-to-write` is set. A full server still invalidates.
_FIRST_LINE = "#!lua flags=allow-oom\n"


class Script:
    """A script: its text, and the hash by which a server that has it knows it."""

    def __init__(self, name: str) -> None:
        here = files("asynctag.backends.redis")
        text = _FIRST_LINE + (here / "journal.lua").read_text("utf-8") + (here / f"{name}.lua").read_text("utf-8")
        self.name = name
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


OPEN = Script("open")
READ = Script("read")
WRITE = Script("write")
INVALIDATE = Script("invalidate")
DELETE = Script("delete")
EPOCH = Script("epoch")
TAG = Script("tag")
LEASE = Script("lease")
RELEASE = Script("release")
UNCHANGED = Script("unchanged")
HELD = Script("held")

ALL = (OPEN, READ, WRITE, INVALIDATE, DELETE, EPOCH, TAG, LEASE, RELEASE, UNCHANGED, HELD)
