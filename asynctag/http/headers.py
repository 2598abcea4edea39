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
from operator import itemgetter
from typing import Literal, NamedTuple
from urllib.parse import unquote_plus

from asynctag.http.structured import INTEGER_MAX, escape, parse_dictionary, write_name, write_string

DELTA_MAX = 2**31
"""The longest time that is kept, and what longer ones are taken for (RFC 9111 §1.2.2)."""

Forward = Literal["bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"]
"""Why a request went past the cache (RFC 9211 §2.2)."""

_OWS = b" \t"
_LIST_BREAK = re.compile(rb'[,"\\]')
_DIGITS = re.compile(rb"[0-9]+")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: Of a header its name: called in C.
name_of = itemgetter(0)

_ETAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_ETAG_MEMBER = re.compile(rb'[ \t,]*(W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')
_ASCTIME = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}")


@lru_cache(maxsize=1024)  # the same few come again and again
def is_field_name(name: bytes) -> bool:
    """Whether `name` is a token (RFC 9110 §5.6.2), as names of fields and of cookies are."""
    return _TOKEN.fullmatch(name) is not None


def is_field(name: bytes, value: bytes) -> bool:
    """Whether a server sends such a field: nothing in it would end it, and begin another (RFC 9110 §5.5)."""
    return is_field_name(name) and b"\r" not in value and b"\n" not in value and b"\0" not in value


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
    must_understand: bool = False
    no_transform: bool = False
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
        b"must-understand",
        b"no-transform",
        b"only-if-cached",
    )
}
_GRANTS = frozenset((b"public", b"must-understand"))
"""The flags that allow more. They take no argument: with one they are malformed, and not there."""

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
            if not (has_argument and name in _GRANTS):
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


def parse_targeted(lines: Iterable[bytes]) -> CacheControl | None:
    """Read the lines of a targeted field such as `CDN-Cache-Control`: a Dictionary of directives (RFC 9213 §2.1).

    `None` is a field that is absent, empty or does not parse: the next target's counts, or else `Cache-Control` (§2.2).
    A value of another type than its directive's is not used (§2.1): a time then means stale, as one that
    `Cache-Control` cannot read does, what restricts is there whatever its value, and what allows more is not there.
    """
    members = parse_dictionary(lines)
    if not members:
        return None
    flags: dict[str, bool] = {}
    deltas: dict[str, int] = {}
    for key, value in members.items():
        name = key.encode()
        if flag := _FLAGS.get(name):
            if value is True or name not in _GRANTS:
                flags[flag] = True
        elif delta := _DELTAS.get(name):
            attribute, _, unreadable = delta
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                deltas[attribute] = min(value, DELTA_MAX)
            else:
                deltas[attribute] = unreadable
    return CacheControl(**flags, **deltas)  # type: ignore[arg-type]


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


class EntityTag(NamedTuple):
    """An entity tag. `opaque` is what it is compared by, quotes included."""

    opaque: bytes
    weak: bool


def entity_tag(value: bytes | None) -> EntityTag | None:
    """The entity tag that a field holds, `None` if it is not exactly one (RFC 9110 §8.8.3)."""
    found = _ETAG.fullmatch(value.strip(_OWS)) if value is not None else None
    return None if found is None else EntityTag(found[2], found[1] is not None)


def etag_matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names `etag`, by weak comparison (RFC 9110 §8.8.3.2, §13.1.2).

    A field that is not a list of entity tags matches nothing: the client then gets the whole response.
    """
    return _names_etag(if_none_match, etag, weakly=True)


def etag_matches_strongly(if_match: bytes, etag: bytes) -> bool:
    """Whether `If-Match` names `etag`, by strong comparison: a weak tag equals none (RFC 9110 §8.8.3.2, §13.1.1).

    A field that is not a list of entity tags matches nothing: the request is then not carried out.
    """
    return _names_etag(if_match, etag, weakly=False)


def _names_etag(listed: bytes, etag: bytes, *, weakly: bool) -> bool:
    field = listed.strip(_OWS)
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
        if member[2] == own[2] and (weakly or not (member[1] or own[1])):
            matched = True
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


def sort_query(query: bytes, names: Collection[str] | None, ignored: Collection[str] = ()) -> bytes:
    """The query with its pairs sorted by name; with `names`, only the pairs of those names, and none that is `ignored`.

    What is ignored is named whole, or by its beginning and a `*`.

    The values of one name keep their order. Names are compared as an application decodes them: `%61=1` is not hidden
    from a key that holds `a`. Only `&` separates, as in the URL standard. The text of the pairs stays as it was sent.
    """
    if not query or (names is None and not ignored and b"&" not in query):
        return query
    pairs = [(_decoded_name(pair), pair) for pair in query.split(b"&")]
    if names is not None:
        pairs = [pair for pair in pairs if pair[0] in names]
    if ignored:
        whole = frozenset(ignored)
        begins = tuple(name[:-1] for name in ignored if name.endswith("*"))
        pairs = [pair for pair in pairs if pair[0] not in whole and not pair[0].startswith(begins)]
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


@lru_cache(maxsize=256)
def cache_status(
    *,
    hit: bool = False,
    fwd: Forward | None = None,
    fwd_status: int | None = None,
    ttl: float | None = None,
    stored: bool = False,
    collapsed: bool = False,
    key: str | None = None,
    detail: str | None = None,
    name: str = "asynctag",
) -> bytes:
    """A member of `Cache-Status`, its parameters in the order of RFC 9211 §2.1 to §2.8.

    `ttl` is in seconds, and negative for what is served stale. `fwd_status` and `collapsed` mean something only with
    `fwd`, and are left out without it (§2.3, §2.6). `key` helps attackers too: it is for clients that may see it (§6).
    """
    if hit and fwd is not None:
        raise ValueError("a response was a hit or was forwarded, not both")
    parts = [write_name(name)]
    if hit:
        parts.append("hit")
    if fwd is not None:
        parts.append(f"fwd={fwd}")
        if fwd_status is not None:
            parts.append(f"fwd-status={fwd_status}")
    if ttl is not None:
        parts.append(f"ttl={floor(max(-INTEGER_MAX, min(INTEGER_MAX, ttl)))}")
    if stored:
        parts.append("stored")
    if collapsed and fwd is not None:
        parts.append("collapsed")
    if key is not None:
        parts.append(f"key={write_string(escape(key))}")
    if detail is not None:
        parts.append(f"detail={write_string(escape(detail))}")
    return "; ".join(parts).encode("ascii")
