"""What tells the responses of one URL apart, and the key under which each is kept: functions, without I/O or clocks."""

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote_to_bytes

from asynctag.codec import Kept
from asynctag.http.headers import cookie_values, parse_vary, sort_query
from asynctag.http.packed import PackedCodec
from asynctag.http.rules import Headers, Policy

MAX_PLAIN_KEY = 512
"""Keys longer than this, in bytes, are hashed."""


#: What an object of dimensions takes beyond its names, in bytes.
_OVERHEAD = 200


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What tells the responses of one URL apart, and how they may be served. Kept in the URL's first record.

    `cookies=None`: a request with cookies bypasses the cache; `()`: none matters. `query=None`: the whole query.
    `ignored` are query parameters that do not count. `keyed`: a function of the route says whose a response is.
    `head`: the application answers HEAD as it does GET.
    """

    vary: tuple[bytes, ...] = ()
    cookies: tuple[str, ...] | None = None
    query: tuple[str, ...] | None = None
    public: bool = False
    head: bool = False
    ignored: tuple[str, ...] = ()
    keyed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the URL, query and all, is the whole key."""
        return not (self.vary or self.cookies or self.ignored or self.keyed) and self.query is None


class _DimensionsCodec(PackedCodec):
    def keep(self, value: Any) -> Kept:
        named = (*value.vary, *(value.cookies or ()), *(value.query or ()), *value.ignored)
        return Kept(value, None, _OVERHEAD + sum(map(len, named)))


DIMENSIONS = _DimensionsCodec(Dimensions, "what tells responses apart")

#: Those of a URL that is the whole key of its response.
PLAIN = Dimensions()


def dimensions(policy: Policy | None, headers: Headers, *, public: bool) -> Dimensions | None:
    """The dimensions of a response: what its policy names and what its own `Vary` does. `None` for `Vary: *`."""
    lines = [value for name, value in headers if name.lower() == b"vary"]
    own = parse_vary(lines) if lines else ()
    if own is None:
        return None
    if policy is None:
        return _keyed_by((), None, None, public, (), False, own)
    return keyed_by(policy, own, public=public)


def keyed_by(policy: Policy, vary: tuple[bytes, ...], *, public: bool = False) -> Dimensions:
    """The dimensions by which a request is looked up under `policy`, where responses also vary by `vary`."""
    return _keyed_by(
        policy.vary_fields, policy.cookies, policy.query, public, policy.ignore_query, policy.key is not None, vary
    )


@lru_cache(maxsize=1024)
def _keyed_by(
    named: tuple[bytes, ...],
    cookies: tuple[str, ...] | None,
    query: tuple[str, ...] | None,
    public: bool,
    ignored: tuple[str, ...],
    keyed: bool,
    vary: tuple[bytes, ...],
) -> Dimensions:
    return widened(Dimensions(named, cookies, query, public, ignored=ignored, keyed=keyed), vary)


def widened(dims: Dimensions, vary: tuple[bytes, ...]) -> Dimensions:
    """`dims`, where responses also vary by `vary`."""
    fields = {*dims.vary, *vary}
    if dims.cookies is not None and b"cookie" not in dims.vary:
        fields.discard(b"cookie")  # the policy says which cookies that means
    return replace(dims, vary=tuple(sorted(fields)))


def varied(headers: list[tuple[bytes, bytes]], policy: Policy | None) -> list[tuple[bytes, bytes]]:
    """The headers of a response, with a `Vary` that names what its policy does: for the caches on its way."""
    if policy is None:
        return headers
    own = parse_vary(value for name, value in headers if name.lower() == b"vary") or ()
    named = {*policy.vary_fields, *((b"cookie",) if policy.cookies else ())}
    return [*headers, *((b"vary", name) for name in sorted(named.difference(own)))]


def url_path(raw: bytes | None, path: str, root: str) -> bytes:
    """The path of a URL for its key: as it was sent, since two spellings may mean two things to the application.

    With the path that it is routed by, and the root that its links are made with, where something on
    the way has changed those: for a tenant, a language.
    """
    if raw is not None and not root and path.isascii() and "%" not in path and "?" not in path:  # as most are
        if raw == path.encode():
            return raw
    decoded = path.encode("utf-8", "surrogatepass")
    sent = decoded if raw is None else raw.partition(b"?")[0]
    if root or unquote_to_bytes(sent) != decoded:
        return b"%d,%d:%b%b%b" % (len(sent), len(decoded), sent, decoded, root.encode("utf-8", "surrogatepass"))
    return sent


def url_base(scheme: str, host: bytes, path: bytes) -> str:
    """A URL without its query, each part with its length: no host can be sent that makes one URL look like another."""
    there = host.decode("latin-1").lower()
    return f"{len(scheme)},{len(there)},{len(path)}:{scheme}://{there}{path.decode('latin-1')}"


def variant_key(base: str, query: bytes, headers: Headers, dims: Dimensions, own_key: str = "") -> str:
    """The key of the response to this request at `url_base(...)`, whose parts stand with their lengths.

    So do the others here, and the dimensions with their names: no request can be written to meet another's key, nor
    an entry of other dimensions. `own_key` is what the route's function says, where the dimensions are `keyed`.
    """
    sent = sort_query(query, dims.query, dims.ignored).decode("latin-1") if query else ""
    key = f"{len(sent)},{base}?{sent}"
    return shortened(key if dims is PLAIN or dims.plain else key + _variant(headers, dims, own_key))


def shortened(key: str) -> str:
    """`key`, or its hash where it is long."""
    if len(key) <= MAX_PLAIN_KEY and key.isascii():
        return key
    encoded = key.encode("utf-8", "surrogatepass")
    if len(encoded) <= MAX_PLAIN_KEY:
        return key
    return "#" + blake2b(encoded, digest_size=32).hexdigest()


def _variant(headers: Headers, dims: Dimensions, own_key: str) -> str:
    # Lines of one field are kept apart, finer than RFC 9111 §4.1 asks: an application may read only the first.
    lines: dict[bytes, list[bytes]] = {name: [] for name in dims.vary}
    wanted = lines.keys() | {b"cookie"}
    cookie_lines: list[bytes] = []
    for name, value in headers:
        if name in wanted:
            if name == b"cookie":
                cookie_lines.append(value)
            if name in lines:
                lines[name].append(value.strip(b" \t"))
    parts: list[str] = []
    for name, values in lines.items():
        parts.append(f"h{_framed(name.decode('latin-1'))}")
        parts.extend(_framed(value.decode("latin-1")) for value in values)
    if dims.cookies:
        parts.append(f"c{len(dims.cookies)};")
        for cookie, sent in cookie_values(cookie_lines, dims.cookies):
            parts.append(_framed(cookie) + ("-" if sent is None else _framed(sent)))
    if dims.query is not None:
        parts.append(f"q{len(dims.query)};")
        parts.extend(_framed(name) for name in dims.query)
    if dims.ignored:
        parts.append(f"i{len(dims.ignored)};")
        parts.extend(_framed(name) for name in dims.ignored)
    if dims.keyed:
        parts.append(f"k{_framed(own_key)}")
    return "".join(parts)


def _framed(text: str) -> str:
    return f"{len(text)}:{text}"
