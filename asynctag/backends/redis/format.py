"""Entries as bytes, as they stand in Redis.

    "AT"  version  flags | epoch  seq | renew_from  fresh_until  stale_until  expires | length | tags | body | seal
      2      1       1      8      8        8            8            8          8       4

Numbers are little-endian doubles (whole ones are exact up to 2**53), times are Unix seconds by the server's clock, tags
are a MessagePack array of strings, `length` is that of the tags. The body is what the codec of the value has made,
compressed with zstd (RFC 8878) where that makes it smaller. With a key, an HMAC (RFC 2104) over the name of the entry
and all before it seals the whole.

Nothing that is read is trusted: whatever is not exactly this is `CorruptEntryError`, which the cache takes for a miss.
"""

import hmac
import struct
import sys
from typing import NamedTuple

import msgspec

from asynctag.backends.base import Stamp
from asynctag.errors import CorruptEntryError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VERSION = 1

_COMPRESSED, _SEALED = 1, 2
_HEAD = struct.Struct("<2sBB6dI")
_SEAL = 32

#: Where the tags' length and the tags stand: from here on, two versions of an entry are mostly the same.
TAGS_AT = _HEAD.size - 4

#: Read by the scripts: see FIXED in journal.lua.
assert _HEAD.size == 56

_tags = msgspec.msgpack.Decoder(tuple[str, ...])
_pack_tags = msgspec.msgpack.Encoder().encode


class Times(NamedTuple):
    """Seconds. See `asynctag.backends.base.Entry`."""

    renew_from: float
    fresh_until: float
    stale_until: float
    expires: float


class Record(NamedTuple):
    """What an entry is in Redis. `head` is what stands before the body."""

    stamp: Stamp
    times: Times
    tags: tuple[str, ...]
    head: bytes
    body: bytes


def pack_tags(tags: tuple[str, ...]) -> bytes:
    """The tags of an entry with their length before them, as they stand in it."""
    packed = _pack_tags(tags)
    return len(packed).to_bytes(4, "little") + packed


class Format:
    """Writes and reads entries. `secret`: the key of the seal; bodies from `compress_from` bytes on are compressed.

    Bodies above `max_body` bytes are not read, compressed or not.
    """

    def __init__(self, *, secret: bytes | None, compress_from: int, max_body: int) -> None:
        self._secret = secret
        self._compress_from = compress_from
        self._max_body = max_body

    def dump(self, name: str, stamp: Stamp, times: Times, packed_tags: bytes, body: bytes) -> bytes:
        """The entry under `name`."""
        flags = 0
        if len(body) >= self._compress_from:
            smaller = zstd.compress(body, 1)
            if len(smaller) < len(body):
                flags, body = _COMPRESSED, smaller
        if self._secret is not None:
            flags |= _SEALED
        fixed = _HEAD.pack(b"AT", VERSION, flags, stamp.epoch, stamp.seq, *times, 0)[:TAGS_AT]
        whole = b"".join((fixed, packed_tags, body))
        if self._secret is None:
            return whole
        return whole + self._seal(name, whole)

    def load(self, name: str, data: bytes) -> Record:
        """The entry of the bytes under `name`."""
        if len(data) < _HEAD.size:
            raise CorruptEntryError(f"{len(data)} bytes: cut short, or none of ours")
        length = int.from_bytes(data[TAGS_AT : _HEAD.size], "little")
        body_at = _HEAD.size + length
        if len(data) < body_at:
            raise CorruptEntryError(f"{len(data)} bytes, with tags up to {body_at}: cut short")
        stamp, times, body = self.load_known(name, data, body_at)
        head = data[:body_at]
        return Record(stamp, times, self.tags(head), head, body)

    def tags(self, head: bytes) -> tuple[str, ...]:
        """The tags in a head."""
        try:
            return _tags.decode(head[_HEAD.size :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptEntryError(f"tags that are none: {error}") from error

    def load_known(self, name: str, data: bytes, body_at: int) -> tuple[Stamp, Times, bytes]:
        """As `load`, of an entry whose tags are known already and end at `body_at`."""
        magic, version, flags, epoch, seq, renew_from, fresh_until, stale_until, expires, _ = _HEAD.unpack_from(data)
        if magic != b"AT":
            raise CorruptEntryError("none of ours")
        if version != VERSION:
            raise CorruptEntryError(f"format version {version}: this is version {VERSION}")
        if flags > (_COMPRESSED | _SEALED):
            raise CorruptEntryError(f"unknown flags {flags:#x}")
        if self._secret is not None:
            self._check_seal(name, data, flags)
        end = len(data) - (_SEAL if flags & _SEALED else 0)
        body = data[body_at:end]
        if flags & _COMPRESSED:
            body = self._decompress(body)
        if len(body) > self._max_body:
            raise CorruptEntryError(f"a body of {len(body)} bytes: above the limit of {self._max_body}")
        times = Times(renew_from, fresh_until, stale_until, expires)
        # Anything may stand there, infinities and what is no number too.
        if not (0 <= epoch < 2**53 and 0 <= seq < 2**53 and renew_from >= 0 and fresh_until <= stale_until <= expires):
            raise CorruptEntryError("numbers that no entry has")
        return Stamp(int(epoch), int(seq)), times, body

    def _decompress(self, body: bytes) -> bytes:
        decompressor = zstd.ZstdDecompressor()
        try:
            plain = decompressor.decompress(body, max_length=self._max_body + 1)
        except zstd.ZstdError as error:
            raise CorruptEntryError(f"a body that is not compressed as it says: {error}") from error
        if not decompressor.eof or decompressor.unused_data:
            raise CorruptEntryError(f"a body that is cut short, longer than it says, or above {self._max_body} bytes")
        return plain

    def _seal(self, name: str, whole: bytes) -> bytes:
        assert self._secret is not None
        under = name.encode()
        return hmac.digest(self._secret, b"%d:%b%b" % (len(under), under, whole), "sha256")

    def _check_seal(self, name: str, data: bytes, flags: int) -> None:
        whole, seal = data[:-_SEAL], data[-_SEAL:]
        if not flags & _SEALED or not hmac.compare_digest(self._seal(name, whole), seal):
            raise CorruptEntryError("not sealed with this key: somebody else wrote or changed it")
