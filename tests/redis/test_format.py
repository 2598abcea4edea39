"""Entries as bytes: what was written once can be read, and nothing else is taken for an entry."""

import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.backends.base import Stamp
from asynctag.backends.redis.format import VERSION, Format, Times, pack_tags
from asynctag.errors import CorruptEntryError

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.bin"))

SECRET = b"sixteen bytes or more"
KEY = "shop|k|catalogue.product(635)"
TAGS = (KEY, "shop|t|product:635", "shop|t|farbe:grün", "shop|n|", "|n|")
STAMP = Stamp(4_503_599_627_370_495, 41)
TIMES = Times(1_800_000_050.25, 1_800_000_060.5, 1_800_000_120.0, 1_800_000_180.0)
BODY = msgspec.msgpack.encode({"name": "Lampe", "price": 1999, "text": "warm light. " * 20})

PLAIN = Format(secret=None, compress_from=10_000, max_body=100_000)
SMALL = Format(secret=None, compress_from=1, max_body=100_000)
SEALED = Format(secret=SECRET, compress_from=10_000, max_body=100_000)
SEALED_SMALL = Format(secret=SECRET, compress_from=1, max_body=100_000)
FORMATS = [PLAIN, SMALL, SEALED, SEALED_SMALL]


def dump(form: Format = PLAIN, *, key: str = KEY, body: bytes = BODY, times: Times = TIMES) -> bytes:
    return form.dump(key, STAMP, times, pack_tags(TAGS), body)[0]


def load(form: Format, data: bytes, key: str = KEY) -> tuple[Stamp, Times, tuple[str, ...], bytes]:
    head = form.head(data)
    return head.stamp, head.times, form.tags(head), form.body(key, data, len(head.raw))


WHOLE = (STAMP, TIMES, TAGS, BODY)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_earlier_releases_stored_is_read(path: Path) -> None:
    """The stored bytes of each version stay here: each decodes to what it was made from."""
    form = SEALED if "sealed" in path.name else PLAIN
    assert load(form, path.read_bytes()) == WHOLE


def test_each_version_has_golden_files() -> None:
    """A new version adds its own, in every variant."""
    assert {path.stem for path in GOLDEN} == {
        f"v{version}-{variant}"
        for version in range(1, VERSION + 1)
        for variant in ("plain", "compressed", "sealed", "sealed-compressed")
    }


def test_the_format_has_not_changed() -> None:
    """Byte for byte, where no compressor is part of it: another layout needs another version."""
    golden = {path.stem: path.read_bytes() for path in GOLDEN}
    assert dump(PLAIN) == golden["v1-plain"]
    assert dump(SEALED) == golden["v1-sealed"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_read(form: Format) -> None:
    """Compressed, sealed, both or neither."""
    data, head = form.dump(KEY, STAMP, TIMES, pack_tags(TAGS), BODY)
    assert load(form, data) == WHOLE
    assert form.head(data) == head
    assert data.startswith(head.raw)


def test_large_bodies_are_compressed_where_that_makes_them_smaller() -> None:
    """What is small, or does not get smaller, stands as it is."""
    assert BODY in dump(PLAIN)
    assert len(dump(SMALL)) < len(dump(PLAIN)) - 100
    noise = bytes(range(256))
    assert noise in dump(SMALL, body=noise)


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_is_cut_short_is_refused(form: Format) -> None:
    """At every length: never half an entry. (A body that is neither compressed nor sealed has no end of its own.)"""
    data = dump(form)
    body_at = len(form.head(data).raw)
    for length in range(len(data)):
        if form is PLAIN and length >= body_at:
            continue
        with pytest.raises(CorruptEntryError):
            load(form, data[:length])


def test_a_sealed_entry_is_nobody_elses() -> None:
    """One changed bit, another key, no seal, another secret: refused."""
    data = dump(SEALED)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(CorruptEntryError):
            load(SEALED, bytes(changed))
    with pytest.raises(CorruptEntryError, match="sealed"):
        load(SEALED, data, KEY + "6")
    with pytest.raises(CorruptEntryError, match="sealed"):
        load(SEALED, dump(PLAIN))
    with pytest.raises(CorruptEntryError, match="sealed"):
        load(Format(secret=b"another one, as long", compress_from=1, max_body=100), data)


def test_a_newer_version_is_a_clean_miss() -> None:
    """A process that has not been updated yet says what it met."""
    data = bytearray(dump())
    data[2] = VERSION + 1
    with pytest.raises(CorruptEntryError, match=f"version {VERSION + 1}"):
        load(PLAIN, bytes(data))


def test_what_expands_beyond_the_limit_is_refused() -> None:
    """A few bytes that decompress to gigabytes take no gigabytes."""
    small = Format(secret=None, compress_from=1, max_body=1000)
    wide = Format(secret=None, compress_from=1, max_body=10**9)
    bomb = dump(wide, body=bytes(50_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptEntryError, match="1000"):
        load(small, bomb)
    with pytest.raises(CorruptEntryError, match="limit"):
        load(small, dump(body=bytes(1001)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 2.0**60])
def test_numbers_that_no_entry_has_are_refused(number: float) -> None:
    """What somebody else wrote there reaches no conversion that fails."""
    for at in (4, 12):
        data = bytearray(dump())
        struct.pack_into("<d", data, at, number)
        with pytest.raises(CorruptEntryError):
            load(PLAIN, bytes(data))
    with pytest.raises(CorruptEntryError):
        load(PLAIN, dump(times=Times(1.0, float("nan"), 1.0, 1.0)))


@pytest.mark.parametrize("tags", [b"\xc1", b"\x91\xa1\xff", b"\x01", b"\x91\x01", b"\x91\xdd\xff\xff\xff\xff", b""])
def test_tags_that_are_none_are_refused(tags: bytes) -> None:
    """What is no array of strings."""
    data = dump()[:52] + len(tags).to_bytes(4, "little") + tags + BODY
    with pytest.raises(CorruptEntryError):
        load(PLAIN, data)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    """Bytes of anybody raise nothing else than that they are no entry."""
    for data in (noise, b"AT\1\0" + noise, b"AT\1\1" + noise, dump()[:56] + noise):
        for form in (PLAIN, SEALED):
            try:
                load(form, data)
            except CorruptEntryError:
                continue
            assert data.startswith(b"AT\1")
