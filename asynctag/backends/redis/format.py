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

#: No entry lives as long as that (seconds since 1970).
LATEST = 1e12

#: Where the tags' length and the tags stand: from here on, two versions of an entry are mostly the same.
TAGS_AT = _HEAD.size - 4

FLAGS_AT = 3

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


class Head(NamedTuple):
    """What stands before the body of an entry. `as_is`: the body is neither compressed nor sealed."""

    raw: bytes
    stamp: Stamp
    times: Times
    as_is: bool


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

    def dump(self, name: str, stamp: Stamp, times: Times, packed_tags: bytes, body: bytes) -> tuple[bytes, Head]:
        """The entry under `name`, and its head."""
        flags = 0
        if len(body) >= self._compress_from:
            smaller = zstd.compress(body, 1)
            if len(smaller) < len(body):
                flags, body = _COMPRESSED, smaller
        if self._secret is not None:
            flags |= _SEALED
        raw = _HEAD.pack(b"AT", VERSION, flags, *stamp, *times, 0)[:TAGS_AT] + packed_tags
        whole = raw + body
        if self._secret is not None:
            whole += self._seal(name, whole)
        return whole, Head(raw, stamp, times, flags == 0)

    def head(self, data: bytes) -> Head:
        """The head of the entry that is in `data`, or begins it."""
        if len(data) < _HEAD.size:
            raise CorruptEntryError(f"{len(data)} bytes: cut short, or none of ours")
        magic, version, flags, epoch, seq, renew_from, fresh_until, stale_until, expires, length = _HEAD.unpack_from(
            data
        )
        if magic != b"AT":
            raise CorruptEntryError("none of ours")
        if version != VERSION:
            raise CorruptEntryError(f"format version {version}: this is version {VERSION}")
        if flags > (_COMPRESSED | _SEALED):
            raise CorruptEntryError(f"unknown flags {flags:#x}")
        # Anything may stand there, infinities and what is no number too.
        ordered = renew_from >= 0 and fresh_until <= stale_until <= expires < LATEST
        if not (ordered and 0 <= epoch < 2**53 and 0 <= seq < 2**53):
            raise CorruptEntryError("numbers that no entry has")
        if len(data) < _HEAD.size + length:
            raise CorruptEntryError(f"{len(data)} bytes, with tags up to {_HEAD.size + length}: cut short")
        times = Times(renew_from, fresh_until, stale_until, expires)
        return Head(data[: _HEAD.size + length], Stamp(int(epoch), int(seq)), times, flags == 0)

    def tags(self, head: Head) -> tuple[str, ...]:
        """The tags in a head."""
        try:
            tags = _tags.decode(head.raw[_HEAD.size :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptEntryError(f"tags that are none: {error}") from error
        if any(tag.count("|") < 2 for tag in tags):
            raise CorruptEntryError("tags that are no names of ours")
        return tags

    def body(self, name: str, data: bytes, body_at: int) -> bytes:
        """The body of the entry under `name`, whose head ends at `body_at`."""
        flags = data[FLAGS_AT]
        if self._secret is not None:
            self._check_seal(name, data, flags)
        body = data[body_at : len(data) - (_SEAL if flags & _SEALED else 0)]
        if flags & _COMPRESSED:
            body = self._decompress(body)
        if len(body) > self._max_body:
            raise CorruptEntryError(f"a body of {len(body)} bytes: above the limit of {self._max_body}")
        return body

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
