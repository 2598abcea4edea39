"""The rules of HTTP caching, as functions of requests, responses and times: nothing here awaits or reads a clock.

Ages, lifetimes and times are seconds. A rule that refuses says why, in a word that fits `Cache-Status`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isfinite
from typing import Any, Literal

from asynctag.errors import ConfigurationError
from asynctag.http.headers import (
    CacheControl,
    etag_matches,
    http_date,
    is_field,
    is_field_name,
    parse_age,
    parse_cache_control,
    parse_targeted,
    parse_vary,
)

Headers = Iterable[tuple[bytes, bytes]]
Store = Literal["declared", "rfc9111"]

# --- requests


@dataclass(slots=True)
class RequestFacts:
    """What the rules need to know of a request, gathered in one pass over its headers.

    Never changed once made, and not frozen only because that would double the time that every request takes here.
    """

    method: str
    authorization: bool = False
    cookie: bool = False
    range: bytes | None = None
    if_range: bytes | None = None
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None
    cache_control: CacheControl | None = None
    upgrade: bool = False
    body: bool = False
    precondition: bool = False
    """`If-Match` or `If-Unmodified-Since`: for the origin to judge, never for a cache (RFC 9111 §4.3.2)."""

    @property
    def only_if_cached(self) -> bool:
        """A miss is to be answered with 504 (RFC 9111 §5.2.1.7)."""
        return self.cache_control is not None and self.cache_control.only_if_cached


#: The headers of a request that a cache decides by.
DECISIVE = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-length",
        b"cookie",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"transfer-encoding",
        b"upgrade",
    }
)
_BARE = {method: RequestFacts(method) for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


#: A `GET` that says nothing for a cache to decide by.
PLAIN_GET = _BARE["GET"]


def read_request(method: str, headers: Headers) -> RequestFacts:
    """Gather the facts. Most requests have no header that matters here, and share one object."""
    found: dict[bytes, bytes] | None = None
    for name, value in headers:
        if name in DECISIVE:
            if found is None:
                found = {name: value}
            elif name in found:
                found[name] += b", " + value
            else:
                found[name] = value
    if found is None:
        return _BARE.get(method) or RequestFacts(method)
    return RequestFacts(
        method,
        b"authorization" in found,
        b"cookie" in found,
        found.get(b"range"),
        found.get(b"if-range"),
        found.get(b"if-none-match"),
        found.get(b"if-modified-since"),
        _request_directives(found),
        # an offer of h2c is for the server to take or leave: the request is an ordinary one
        found.get(b"upgrade", b"h2c").strip().lower() != b"h2c",
        b"transfer-encoding" in found or found.get(b"content-length", b"0").strip(b"0") != b"",
        b"if-match" in found or b"if-unmodified-since" in found,
    )


def _request_directives(found: Mapping[bytes, bytes]) -> CacheControl | None:
    line = found.get(b"cache-control")
    if line is not None:
        return parse_cache_control((line,))
    pragma = found.get(b"pragma")  # counts only without Cache-Control (RFC 9111 §5.4)
    if pragma is not None and parse_cache_control((pragma,)).no_cache:
        return CacheControl(no_cache=True)
    return None


def why_bypass(request: RequestFacts, *, vary: Collection[bytes], cookies: Collection[str] | None) -> str | None:
    """Why this request must not touch the cache, or `None`. `vary` and `cookies` are what the keys hold; `cookies` is
    `None` where the route said nothing of cookies, and empty where none matters."""
    if request.method != "GET" and request.method != "HEAD":
        return "method"
    if request.authorization and b"authorization" not in vary:
        return "authorization"
    if request.cookie and cookies is None and b"cookie" not in vary:
        return "cookie"
    if request.cache_control is not None and request.cache_control.no_store:
        return "no-store"
    if request.body:
        return "body"
    if request.upgrade:
        return "upgrade"
    if request.precondition:
        return "precondition"
    return None


def may_serve(
    request: RequestFacts,
    age: float,
    lifetime: float,
    *,
    stale: float = 0.0,
    must_revalidate: bool = False,
) -> bool:
    """Whether a stored response of that age answers the request without asking the application (RFC 9111 §4, §5.2.1).

    `stale` is how long past its lifetime it may be served; with `must_revalidate` no request can stretch that.
    """
    remaining = lifetime - age
    wanted = request.cache_control
    if wanted is None:
        return remaining > 0 or -remaining < stale
    if wanted.no_cache:
        return False
    if wanted.max_age is not None:
        if age > wanted.max_age:
            return False
        stale = 0.0  # with max-age, a stale response is wanted only where max-stale says so (§5.2.1.1)
    if wanted.min_fresh is not None and remaining < wanted.min_fresh:
        return False
    if remaining > 0 or -remaining < stale:
        return True
    return wanted.max_stale is not None and not must_revalidate and -remaining <= wanted.max_stale


def not_modified(request: RequestFacts, etag: bytes | None, last_modified: bytes | None) -> bool:
    """Whether a 304 answers the request, for a stored 200. `If-None-Match` over `If-Modified-Since` (RFC 9110
    §13.2.2)."""
    if request.method != "GET" and request.method != "HEAD":
        return False
    if request.if_none_match is not None:
        return etag_matches(request.if_none_match, etag or b"")
    if request.if_modified_since is None or last_modified is None:
        return False
    since, modified = http_date(request.if_modified_since), http_date(last_modified)
    return since is not None and modified is not None and modified <= since


# --- what a route says


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a route says of its responses, as far as HTTP is concerned. Checked when it is made.

    `ttl=None` leaves the lifetime to the response; where that says none either, `heuristic` is the share of the time
    since its `Last-Modified` for which it counts as fresh (RFC 9111 §4.2.2 speaks of 0.1), a day at most. `cookies`
    and `query` name what the key holds: `None` is every query parameter, and no cookie at all, so that a request with
    cookies bypasses the cache. `ignore_query` names query parameters that do not count, whole or by their beginning
    (`"utm_*"`). `key`, a function of the request (Starlette's `HTTPConnection`), says whose the response is: it is then
    for nobody else, and neither `Authorization` nor cookies bypass the cache. `None` from it does.
    """

    ttl: float | None = None
    public: bool = False
    vary: tuple[str, ...] = ()
    cookies: tuple[str, ...] | None = None
    query: tuple[str, ...] | None = None
    ignore_query: tuple[str, ...] = ()
    key: Callable[[Any], str | None] | None = None
    statuses: frozenset[int] = frozenset({200})
    heuristic: float = 0.0
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    jitter: float = 0.0
    vary_fields: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.ttl is not None and (not _is_number(self.ttl) or self.ttl <= 0):
            raise ConfigurationError(f"ttl={self.ttl!r}: give a finite number of seconds above zero")
        for name in ("stale_while_revalidate", "stale_if_error"):
            seconds: float | None = getattr(self, name)
            if seconds is not None and (not _is_number(seconds) or seconds < 0):
                raise ConfigurationError(f"{name}={seconds!r}: give a finite number of seconds, or None")
        if not _is_number(self.jitter) or not 0 <= self.jitter < 1:
            raise ConfigurationError(f"jitter={self.jitter!r}: give a fraction of the ttl, from 0 to below 1")
        if not _is_number(self.heuristic) or not 0 <= self.heuristic < 1:
            raise ConfigurationError(f"heuristic={self.heuristic!r}: give a fraction from 0 to below 1, such as 0.1")
        vary = _names("vary", self.vary)
        for name in vary:
            if name == "*" or not _is_token(name):
                raise ConfigurationError(f"vary={name!r}: give names of request headers; '*' would match no request")
        cookies = None if self.cookies is None else _names("cookies", self.cookies)
        for name in cookies or ():
            if not _is_token(name):
                raise ConfigurationError(f"cookies={name!r}: not the name of a cookie")
        query = None if self.query is None else _names("query", self.query)
        ignored = _names("ignore_query", self.ignore_query)
        for name in ignored:
            if name == "*" or "*" in name[:-1]:
                raise ConfigurationError(
                    f"ignore_query={name!r}: name a parameter, or its beginning and one *, as in 'utm_*'. To ignore "
                    f"all of them, give query=()"
                )
        if self.key is not None and not callable(self.key):
            raise ConfigurationError(f"key={self.key!r}: give a function of the request that returns a str, or None")
        for status in self.statuses:
            if type(status) is bool or not 200 <= status <= 599 or status in (206, 304):
                raise ConfigurationError(
                    f"statuses={status!r}: a whole response has a status from 200 to 599, without 206 and 304"
                )
        if not self.statuses:
            raise ConfigurationError("statuses is empty: nothing would be stored; leave the route undecorated instead")
        lowered = tuple(sorted({name.lower() for name in vary}))
        object.__setattr__(self, "vary", lowered)
        object.__setattr__(self, "vary_fields", tuple(name.encode() for name in lowered))
        object.__setattr__(self, "cookies", cookies)
        object.__setattr__(self, "query", query)
        object.__setattr__(self, "ignore_query", ignored)
        object.__setattr__(self, "statuses", frozenset(self.statuses))

    @property
    def is_plain(self) -> bool:
        """Whether the URL, query and all, is the whole key."""
        named = self.vary or self.cookies or self.ignore_query or self.key is not None
        return not named and self.query is None

    def with_ttl(self, default: float | None, most: float) -> "Policy":
        """The policy as it counts in a cache. Raises `ConfigurationError` for a `ttl` above `most` seconds."""
        if self.ttl is None:
            return self if default is None else replace(self, ttl=default)
        if self.ttl > most:
            raise ConfigurationError(f"ttl={self.ttl!r} is above the cache's max_ttl of {most:.15g} seconds")
        return self

    @property
    def held_fields(self) -> tuple[bytes, ...]:
        """The request headers that need not bypass the cache: the key tells their responses apart."""
        return (*self.vary_fields, b"authorization", b"cookie") if self.key is not None else self.vary_fields

    @property
    def held_cookies(self) -> tuple[str, ...] | None:
        """The cookies of which that is so; `None` where nothing was said of cookies."""
        return () if self.key is not None and self.cookies is None else self.cookies


def ages_from_request(policy: Policy | None) -> bool:
    """Whether a response is as old as the request for it (RFC 9111 §4.2.3), as by its own word; by a policy's, as its
    entry."""
    return policy is None or policy.ttl is None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _is_token(name: str) -> bool:
    return name.isascii() and is_field_name(name.encode())


def _names(option: str, names: object) -> tuple[str, ...]:
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise ConfigurationError(f"{option}={names!r}: give a tuple of names")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{option}={name!r}: give names, as non-empty strings")
    return tuple(sorted(set(names)))


# --- responses


@dataclass(frozen=True, slots=True)
class Storable:
    """A response that may be stored, and for how long. `public` says that its hits may be served before routing.

    With `must_revalidate` no request gets it past its lifetime.
    """

    lifetime: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    public: bool = False
    must_revalidate: bool = False


def storable(
    request: RequestFacts,
    status: int,
    headers: Headers,
    policy: Policy | None,
    *,
    store: Store = "declared",
    targets: Sequence[bytes] = (),
    now: float,
) -> Storable | str:
    """Whether the response may be stored (RFC 9111 §3), or why not.

    `targets` are the names of fields that speak to this cache, the first that is there and can be read in place of
    `Cache-Control` and `Expires` (RFC 9213 §2.2).
    """
    headers = list(headers)
    fields = _fields(headers)
    directives, targeted = _directives(fields, targets)
    held = () if policy is None else policy.held_fields
    cookies = None if policy is None else policy.held_cookies
    if request.method != "GET":
        return "method"
    if request.range is not None:  # whatever it is, it is not sure to be the whole
        return "range"
    for name, value in headers:
        if not is_field(name, value):
            return "malformed"  # servers refuse to send it, and would refuse every hit
    reason = _why_request_is_private(request, directives, held, cookies) or _why_not_whole(
        status, fields, directives, _statuses(policy, store)
    )
    if reason is None:
        reason = _why_response_is_private(fields, directives, held, cookies)
    if reason is not None:
        return reason

    own = freshness(directives, {} if targeted else fields, now)
    # What is said to shared caches alone is said of this one. A browser's max-age is not.
    declared = directives.public or directives.s_maxage is not None or (targeted and own is not None)
    if policy is None:
        if own is None:
            return "no-freshness"
        if store == "declared" and not declared:
            return "undeclared"
    lifetime = own if policy is None or policy.ttl is None else policy.ttl
    if lifetime is None and policy is not None and policy.heuristic:
        lifetime = heuristic_freshness(fields, policy.heuristic, now)
    if lifetime is None:
        return "no-freshness"
    if directives.s_maxage is not None:
        lifetime = min(lifetime, directives.s_maxage)  # max-age may be for the browser alone: it does not cut a policy
    lifetime -= parse_age(fields.get(b"age", ())) or 0
    if lifetime <= 0:
        return "stale"
    while_revalidate, if_error = _stale_periods(directives, policy)
    return Storable(
        lifetime=float(lifetime),
        stale_while_revalidate=while_revalidate,
        stale_if_error=if_error,
        public=(policy is not None and policy.public)
        or declared
        or (store == "rfc9111" and own is not None and own > 0),
        must_revalidate=_must_revalidate(directives),
    )


_ONLY_200 = frozenset({200})


def _directives(fields: Mapping[bytes, list[bytes]], targets: Sequence[bytes]) -> tuple[CacheControl, bool]:
    """What is said of caching, and whether it is said to this cache alone (RFC 9213 §2.2)."""
    for target in targets:
        lines = fields.get(target)
        said = parse_targeted(lines) if lines is not None else None
        if said is not None:
            return said, True
    return parse_cache_control(fields.get(b"cache-control", ())), False


#: Names that most responses have, as they are mostly written, and that tell nothing of a lifetime.
_USUAL = frozenset(
    {b"content-encoding", b"content-length", b"content-type", b"date", b"location", b"server", b"set-cookie", b"vary"}
)


@dataclass(frozen=True, slots=True)
class Telling:
    """The fields by which a response may have a lifetime by its own word: without one of them it has none.

    `targets` are those that speak to caches such as this one, beside `Cache-Control` and `Expires`; `others` are usual
    ones that surely tell nothing.
    """

    targets: frozenset[bytes]
    others: frozenset[bytes]


def telling_fields(targets: Collection[bytes]) -> Telling:
    """Those of a cache to which the fields `targets` speak, in lower case."""
    return Telling(frozenset(targets), _USUAL.difference(targets))


def may_be_stored(headers: Headers, telling: Telling) -> bool:
    """Whether a response may have a lifetime by its own word, at a glance: where this is false, `storable` says no too,
    and none of the targets is there."""
    others = telling.others
    says = forbids = relents = False
    for sent, value in headers:
        if sent in others:
            continue
        name = sent.lower()
        if name == b"cache-control":
            says = True
            forbidden, relented = _at_a_glance(bytes(value))
            forbids, relents = forbids or forbidden, relents or relented
        elif name in telling.targets:
            return True
        elif name == b"expires":
            says = True
    return says and (relents or not forbids)


@lru_cache(maxsize=128)
def _at_a_glance(cache_control: bytes) -> tuple[bool, bool]:
    """Whether it forbids to store, and whether that is to be read with care: it may relent for who understands it
    (RFC 9111 §5.2.2.3), or be quoted."""
    said = cache_control.lower()
    members = [member.strip(b" \t") for member in said.split(b",")]
    return b"no-store" in members or b"private" in members, b"must-understand" in said or b'"' in said


#: Statuses whose responses mean to a cache what they mean to everybody (RFC 9111 §3, RFC 9110 §15).
UNDERSTOOD = frozenset({200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 451, 501})


def _why_request_is_private(
    request: RequestFacts, directives: CacheControl, held: Collection[bytes], cookies: Collection[str] | None
) -> str | None:
    reason = why_bypass(request, vary=held, cookies=cookies)
    if reason != "authorization":
        return reason
    # an answer to Authorization may be shared only where it says so (RFC 9111 §3.5)
    # `must-revalidate` would do by the RFC, but applications say it to browsers and mean nothing by it here.
    if directives.public or directives.s_maxage is not None:
        return why_bypass(request, vary=(*held, b"authorization"), cookies=cookies)
    return reason


def _statuses(policy: Policy | None, store: Store) -> frozenset[int]:
    """The statuses that are stored. An application that says `public` of every answer seldom means its errors, which a
    client can bring about by what no key holds."""
    if policy is not None:
        return policy.statuses
    return UNDERSTOOD if store == "rfc9111" else _ONLY_200


def _why_not_whole(
    status: int, fields: Mapping[bytes, list[bytes]], directives: CacheControl, statuses: frozenset[int]
) -> str | None:
    if status not in statuses:
        return "status"
    # What says `must-understand` is stored only by who does (RFC 9111 §5.2.2.3).
    if directives.must_understand and status not in UNDERSTOOD:
        return "status"
    if b"content-range" in fields:
        return "partial"
    if b"trailer" in fields:
        return "trailer"
    for value in fields.get(b"content-type", ()):
        if value.partition(b";")[0].strip().lower() == b"text/event-stream":
            return "event-stream"
    return None


def _why_response_is_private(
    fields: Mapping[bytes, list[bytes]],
    directives: CacheControl,
    held: Collection[bytes],
    cookies: Collection[str] | None,
) -> str | None:
    if b"set-cookie" in fields:
        return "set-cookie"
    if directives.no_store and not directives.must_understand:  # §5.2.2.3: who understands the status may store it
        return "no-store"
    if directives.private:
        return "private"
    if directives.no_cache:  # would have to be validated on every hit (§5.2.2.4)
        return "no-cache"
    vary = parse_vary(fields.get(b"vary", ()))
    if vary is None:
        return "vary-*"
    if b"authorization" in vary and b"authorization" not in held:
        return "vary-authorization"
    if b"cookie" in vary and b"cookie" not in held:  # what the response says of itself is not overruled by cookies=
        return "vary-cookie"
    return None


def freshness(directives: CacheControl, fields: Mapping[bytes, list[bytes]], now: float) -> float | None:
    """The lifetime that the response itself gives to a shared cache, `None` without any (RFC 9111 §4.2.1)."""
    if directives.s_maxage is not None:
        return directives.s_maxage
    if directives.max_age is not None:
        return directives.max_age
    expires = fields.get(b"expires")
    if expires is None:
        return None
    ends = [http_date(value) for value in expires]
    date = http_date(fields[b"date"][0]) if b"date" in fields else None
    # an Expires that is no date, "0" above all, has passed; of several the soonest counts (§4.2.1, §5.3)
    return min(0.0 if end is None else max(0.0, end - (now if date is None else date)) for end in ends)


#: The longest lifetime that is guessed, in seconds.
MAX_GUESSED = 86_400.0


def heuristic_freshness(fields: Mapping[bytes, list[bytes]], share: float, now: float) -> float | None:
    """A share of the time since the response was last modified; `None` where it does not tell (RFC 9111 §4.2.2)."""
    modified = http_date(fields[b"last-modified"][0]) if b"last-modified" in fields else None
    if modified is None:
        return None
    date = http_date(fields[b"date"][0]) if b"date" in fields else None
    return min(MAX_GUESSED, share * max(0.0, (now if date is None else date) - modified))


def _must_revalidate(directives: CacheControl) -> bool:
    # RFC 9111 §4.2.4: these forbid serving stale; s-maxage does as it implies proxy-revalidate (§5.2.2.10)
    return directives.must_revalidate or directives.proxy_revalidate or directives.s_maxage is not None


def _stale_periods(directives: CacheControl, policy: Policy | None) -> tuple[float, float]:
    if _must_revalidate(directives):
        return 0.0, 0.0
    while_revalidate: float | None = directives.stale_while_revalidate
    if_error: float | None = directives.stale_if_error
    if policy is not None and policy.stale_while_revalidate is not None:
        while_revalidate = policy.stale_while_revalidate
    if policy is not None and policy.stale_if_error is not None:
        if_error = policy.stale_if_error
    return float(while_revalidate or 0), float(if_error or 0)


def _fields(headers: Headers) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        lowered = name.lower()
        if lowered in fields:
            fields[lowered].append(value)
        else:
            fields[lowered] = [value]
    return fields


_NEVER_STORED = frozenset(
    {
        # of one connection (RFC 9110 §7.6.1), and of one proxy (RFC 9111 §3.1)
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # of one answer: written anew on every serve
        b"age",
        b"cache-status",
        b"content-length",
        b"set-cookie",
    }
)


def stored_headers(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that are kept with a stored response, with lower-case names (RFC 9111 §3.1)."""
    pairs = [(name.lower(), value) for name, value in headers]
    kept = [pair for pair in pairs if pair[0] not in _NEVER_STORED]
    lists = [value for name, value in pairs if name == b"connection"]
    if lists:
        listed = {option.strip(b" \t").lower() for value in lists for option in value.split(b",")}
        kept = [pair for pair in kept if pair[0] not in listed]
    return tuple(kept)


_KEPT_BY_304 = frozenset(
    {b"cache-control", b"cdn-cache-control", b"content-location", b"date", b"etag", b"expires", b"vary"}
)


def not_modified_headers(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that a 304 keeps of the stored response (RFC 9110 §15.4.5); `Last-Modified` where no `ETag` is."""
    pairs = tuple(headers)
    has_etag = any(name == b"etag" for name, _ in pairs)
    return tuple([p for p in pairs if p[0] in _KEPT_BY_304 or (p[0] == b"last-modified" and not has_etag)])
