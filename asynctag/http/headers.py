"""Header fields read and written: the syntax of HTTP caching, without I/O, clocks or opinions.

Names are lower-case bytes, as ASGI gives them; times are seconds since the epoch. Nothing here raises on what
a client sent: what cannot be read is read in the way that caches less.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import blake2b
from math import floor
from typing import Literal
from urllib.parse import quote, unquote_plus

DELTA_MAX = 2**31
"""The longest time that is kept, and what longer ones are taken for (RFC 9111 §1.2.2)."""

Forward = Literal["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"]
"""Why a request went past the cache (RFC 9211 §2.2)."""

_OWS = b" \t"
_LIST_BREAK = re.compile(rb'[,"\\]')
_DIGITS = re.compile(rb"[0-9]+")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ETAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_ETAG_MEMBER = re.compile(rb'[ \t,]*(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')
_ASCTIME = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}")
_SF_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_SF_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)
_SF_INTEGER_MAX = 10**15 - 1


def is_field_name(name: bytes) -> bool:
    """Whether `name` is a token (RFC 9110 §5.6.2), as names of fields and of cookies are."""
    return _TOKEN.fullmatch(name) is not None


def split_list(line: bytes) -> list[bytes]:
    """The members of a comma-separated field; commas in quoted strings do not separate (RFC 9110 §5.6.1).

    A quote that is never closed quotes nothing, so that no `no-store` hides behind it.
    """
    if b'"' not in line:
        return line.split(b",")
    members: list[bytes] = []
    start, escaped, quoted = 0, -1, False
    for found in _LIST_BREAK.finditer(line):
        at = found.start()
        if at == escaped:
            continue
        if line[at] == 0x22:
            quoted = not quoted
        elif line[at] == 0x5C:
            if quoted:
                escaped = at + 1
        elif not quoted:
            members.append(line[start:at])
            start = at + 1
    if quoted:
        return [*members, *line[start:].split(b",")]
    return [*members, line[start:]]


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The directives of `Cache-Control` that count here (RFC 9111 §5.2, RFC 5861). `None` is one that is not there.

    `private` and `no-cache` with field names are taken for the unqualified forms, as §5.2.2.4 and §5.2.2.7 allow.
    `max-stale` without a value is `DELTA_MAX`.
    """

    max_age: int | None = None
    s_maxage: int | None = None
    no_store: bool = False
    no_cache: bool = False
    private: bool = False
    public: bool = False
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None
    only_if_cached: bool = False
    max_stale: int | None = None
    min_fresh: int | None = None


_FLAGS = {
    name: name.decode().replace("-", "_")
    for name in (
        b"no-store",
        b"no-cache",
        b"private",
        b"public",
        b"must-revalidate",
        b"proxy-revalidate",
        b"only-if-cached",
    )
}
_DELTAS: dict[bytes, tuple[str, Callable[[int, int], int], int]] = {
    # directive: (attribute, which of two conflicting values counts, what an unreadable one counts as) (§4.2.1)
    b"max-age": ("max_age", min, 0),
    b"s-maxage": ("s_maxage", min, 0),
    b"stale-while-revalidate": ("stale_while_revalidate", min, 0),
    b"stale-if-error": ("stale_if_error", min, 0),
    b"max-stale": ("max_stale", min, 0),
    b"min-fresh": ("min_fresh", max, DELTA_MAX),
}


def parse_cache_control(values: Iterable[bytes]) -> CacheControl:
    """Read the lines of a `Cache-Control` field. Unknown directives are left out, unreadable times mean stale."""
    line = b",".join(values)
    return _parse_short(line) if len(line) <= 128 else _parse_directives(line)


def _parse_directives(line: bytes) -> CacheControl:
    flags: dict[str, bool] = {}
    deltas: dict[str, int] = {}
    for member in split_list(line):
        name, has_argument, argument = member.partition(b"=")
        name = name.strip(_OWS).lower()
        if flag := _FLAGS.get(name):
            if not (has_argument and name == b"public"):  # it allows more, and takes no argument: this one is malformed
                flags[flag] = True
        elif delta := _DELTAS.get(name):
            attribute, stricter, unreadable = delta
            if has_argument:
                seconds = _delta_seconds(argument.strip(_OWS), unreadable)
            else:
                seconds = DELTA_MAX if name == b"max-stale" else unreadable
            known = deltas.get(attribute)
            deltas[attribute] = seconds if known is None else stricter(known, seconds)
    return CacheControl(**flags, **deltas)  # type: ignore[arg-type]


_parse_short = lru_cache(maxsize=256)(_parse_directives)


def _delta_seconds(argument: bytes, unreadable: int) -> int:
    if len(argument) > 2 and argument[0] == argument[-1] == 0x22:
        argument = argument[1:-1]  # the quoted form, which recipients ought to take too (RFC 9111 §5.2)
    if _DIGITS.fullmatch(argument) is None:
        return unreadable
    digits = argument.lstrip(b"0")
    return DELTA_MAX if len(digits) > 10 else min(int(digits or b"0"), DELTA_MAX)


def parse_vary(values: Iterable[bytes]) -> tuple[bytes, ...] | None:
    """The names in `Vary`, lower-case, sorted, each once. `None` is `*`, or a member that is no field name: no
    request can be known to match it (RFC 9111 §4.1)."""
    names: set[bytes] = set()
    for line in values:
        for member in line.split(b","):
            name = member.strip(_OWS).lower()
            if name == b"*" or (name and not is_field_name(name)):
                return None
            if name:
                names.add(name)
    return tuple(sorted(names))


def parse_age(values: Iterable[bytes]) -> int | None:
    """The seconds in `Age`: of several members the first counts, an unreadable one is as none (RFC 9111 §5.1)."""
    first = b",".join(values).partition(b",")[0].strip(_OWS)
    return _delta_seconds(first, 0) if _DIGITS.fullmatch(first) else None


def make_etag(body: bytes) -> bytes:
    """A strong validator of `body`, the same in every process."""
    return b'"%b"' % blake2b(body, digest_size=16).hexdigest().encode()


def etag_matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names `etag`, by weak comparison (RFC 9110 §8.8.3.2, §13.1.2).

    A field that is not a list of entity tags matches nothing: the client then gets the whole response.
    """
    field = if_none_match.strip(_OWS)
    if field == b"*":
        return True
    own = _ETAG.fullmatch(etag)
    if own is None:
        return False
    at, matched = 0, False
    while at < len(field):
        member = _ETAG_MEMBER.match(field, at)
        if member is None:
            return matched and not field[at:].strip(b" \t,")
        matched = matched or member[1] == own[1]
        at = member.end()
    return matched


def http_date(value: bytes) -> float | None:
    """An HTTP date in any of its three forms (RFC 9110 §5.6.7), or `None`."""
    text = value.strip(_OWS).decode("latin-1")
    if len(text) > 40 or not (text.endswith("GMT") or _ASCTIME.fullmatch(text)):
        return None
    try:
        date = parsedate_to_datetime(text)
        return date.replace(tzinfo=UTC).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def sort_query(query: bytes, names: Collection[str] | None) -> bytes:
    """The query with its pairs sorted by name; with `names`, only the pairs of those names.

    The values of one name keep their order. Names are compared as an application decodes them: `%61=1` is not hidden
    from a key that holds `a`. Only `&` separates, as in the URL standard. The text of the pairs stays as it was sent.
    """
    if not query or (names is None and b"&" not in query):
        return query
    pairs = [(_decoded_name(pair), pair) for pair in query.split(b"&")]
    if names is not None:
        pairs = [pair for pair in pairs if pair[0] in names]
    pairs.sort(key=_first)
    return b"&".join([pair for _, pair in pairs])


def _first(pair: tuple[str, bytes]) -> str:
    return pair[0]


def _decoded_name(pair: bytes) -> str:
    name = pair.partition(b"=")[0].decode("latin-1")
    return unquote_plus(name) if "%" in name or "+" in name else name


def cookie_values(header_values: Iterable[bytes], names: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """The values of the named cookies, in the order of the names (RFC 6265 §4.2). `None` is a cookie not sent.

    A cookie that is sent twice gives all its values, joined with `; `: some frameworks take the first and some the
    last, and a key that held only one of them could be poisoned with the other.
    """
    sent: dict[str, list[str]] = {name: [] for name in names}
    for line in header_values:
        for pair in line.decode("latin-1").split(";"):
            name, is_pair, value = pair.partition("=")
            # stripped as frameworks do, of every space of latin-1
            if is_pair and (values := sent.get(name.strip())) is not None:
                values.append(value.strip())
    return tuple([(name, "; ".join(sent[name]) if sent[name] else None) for name in names])


def cache_status(
    *,
    hit: bool = False,
    fwd: Forward | None = None,
    ttl: float | None = None,
    stored: bool = False,
    detail: str | None = None,
    name: str = "asynctag",
) -> bytes:
    """A member of `Cache-Status` (RFC 9211 §2). `ttl` is negative for what is served stale."""
    if hit and fwd is not None:
        raise ValueError("a response was a hit or was forwarded, not both")
    parts = [name if _SF_TOKEN.fullmatch(name) else _sf_string(name)]
    if hit:
        parts.append("hit")
    if fwd is not None:
        parts.append(f"fwd={fwd}")
    if ttl is not None:
        parts.append(f"ttl={floor(max(-_SF_INTEGER_MAX, min(_SF_INTEGER_MAX, ttl)))}")
    if stored:
        parts.append("stored")
    if detail is not None:
        parts.append(f"detail={_sf_string(detail)}")
    return "; ".join(parts).encode("ascii")


def _sf_string(text: str) -> str:
    """A structured field's string (RFC 8941 §3.3.3): what is not printable ASCII is percent-encoded first."""
    printable = quote(text, safe=_SF_SAFE, errors="backslashreplace")
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
