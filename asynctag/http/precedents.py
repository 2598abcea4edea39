"""Starts of responses that were judged before: one that begins as another did is stored in the same way, and the rules
are not gone over again."""

from typing import TYPE_CHECKING, Any, TypeAlias

from asynctag.backends.base import Cause, Entry, Miss, Stamp
from asynctag.expiry import Expiry
from asynctag.http.asgi import Fields, Message
from asynctag.http.headers import cache_status, make_etag, parse_age
from asynctag.http.outgoing import why_gone
from asynctag.http.rules import PLAIN_GET, Policy, Storable, ages_from_request, stored_headers
from asynctag.http.stored import RESPONSES, make_stored
from asynctag.http.variants import DIMENSIONS, Dimensions, dimensions

if TYPE_CHECKING:
    from asynctag.http.exchange import Address
    from asynctag.http.outgoing import Outgoing

#: How many starts are remembered, and how long their headers may be, in bytes.
MAX_PRECEDENTS, MAX_LENGTH = 256, 4096

#: Of how many starts it is known that they came once. Most of those with a header of their own never come again.
MAX_SEEN = 1024

#: What tells starts apart: the policy that counts, the status, the headers without the length of the body.
Beginning: TypeAlias = tuple[Any, ...]

#: Headers with which a response is judged by the time as well, or by what it is a response to.
_OF_ITS_OWN = frozenset({b"cache-groups", b"connection", b"etag", b"expires", b"last-modified"})


class Precedent:
    """How a 200 to a plain `GET` is stored, and how it goes out: what of it follows from its status and headers alone.

    Its URL is the whole key, and it has no validator of its own.
    """

    __slots__ = (
        "_at_new_url",
        "_dims_size",
        "_name",
        "added",
        "adds_cache_control",
        "age",
        "ages_from_request",
        "dims",
        "expiry",
        "kept",
        "must_revalidate",
        "policy",
        "public",
        "size",
        "stale_if_error",
        "with_cookies",
    )

    def __init__(
        self,
        policy: Policy | None,
        verdict: Storable,
        dims: Dimensions,
        headers: Fields,
        added: Fields,
        expiry: Expiry,
        name: str,
    ) -> None:
        self.policy = policy
        self.dims = dims
        self._dims_size = DIMENSIONS.keep(dims).size
        #: What goes out after the application's headers, before the validator.
        self.added = added
        self.adds_cache_control = bool(added)
        self.kept = stored_headers((*headers, *added))
        validated = (*headers, *added, (b"etag", make_etag(b"")))
        #: That of the response without its body, in bytes.
        self.size = RESPONSES.keep(make_stored(200, validated, b"", now=0.0, age=0.0)).size
        self.age = parse_age([value for field, value in headers if field == b"age"]) or 0
        self.ages_from_request = ages_from_request(policy)
        self.expiry = expiry
        self.public = verdict.public
        self.with_cookies = dims.cookies is not None
        self.stale_if_error = verdict.stale_if_error
        self.must_revalidate = verdict.must_revalidate
        self._name = name
        self._at_new_url = (b"cache-status", cache_status(fwd="uri-miss", stored=True, name=name))

    def record(self, key: str, tags: tuple[str, ...], stamp: Stamp, end: float) -> Entry:
        """The record of a URL, until `end` on the backend's clock."""
        return Entry(key, self.dims, None, DIMENSIONS, self._dims_size, tags, stamp, end, end, end, end)

    def is_recorded_as(self, dims: Dimensions) -> bool:
        """Whether a record of `dims`, which are plain, holds all that it would say of its URL's responses."""
        return dims is self.dims or (dims.cookies == self.dims.cookies and dims.public >= self.dims.public)

    def cache_status(self, miss: Miss | None, address: "Address") -> tuple[bytes, bytes]:
        """The field that goes out where a response was stored instead of one that is gone, or of none."""
        if miss is None or miss.cause is Cause.ABSENT:
            return self._at_new_url
        said = cache_status(fwd="stale", stored=True, detail=why_gone(miss, address), name=self._name)
        return b"cache-status", said


class Precedents:
    """Those of one middleware."""

    def __init__(self) -> None:
        self._known: dict[Beginning, Precedent] = {}
        self._seen: set[int] = set()  # hashes

    def find(self, beginning: Beginning | None, policy: Policy | None) -> Precedent | None:
        found = self._known.get(beginning) if beginning is not None else None
        return found if found is not None and found.policy is policy else None

    def note(self, beginning: Beginning, outgoing: "Outgoing") -> None:
        """Remember what was judged of a start, if it follows from it alone, and it did not come for the first time."""
        number = hash(beginning)
        if number not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(number)
            return
        exchange, verdict = outgoing.exchange, outgoing.verdict
        policy, middleware = exchange.policy, exchange.middleware
        _, status, *said = beginning
        if verdict is None or status != 200 or exchange.facts is not PLAIN_GET or exchange.validating:
            return
        if policy is not None and (policy.heuristic or policy.key is not None):
            return
        headers: Fields = tuple(said)
        if any(name != name.lower() or name in _OF_ITS_OWN or name == middleware.own_target for name, _ in headers):
            return
        dims = dimensions(policy, headers, public=verdict.public)
        lifetime = min(verdict.lifetime, exchange.cache.max_ttl)
        if dims is None or not dims.plain or (ages_from_request(policy) and lifetime < verdict.lifetime):
            return
        if _length_of(beginning) > MAX_LENGTH:
            return
        expiry = Expiry(
            ttl=lifetime,
            stale_while_revalidate=verdict.stale_while_revalidate,
            stale_if_error=verdict.stale_if_error,
            jitter=policy.jitter if policy is not None else 0.0,
        )
        if len(self._known) >= MAX_PRECEDENTS:
            self._known.clear()
        self._known[beginning] = Precedent(policy, verdict, dims, headers, outgoing.added, expiry, middleware.name)


def beginning_of(policy: Policy | None, start: Message) -> tuple[Beginning | None, bytes | None]:
    """What tells the start of a response from others, and the length that it says its body has.

    None for one with several lengths, and for headers of other types than those of most.
    """
    said: list[object] = [id(policy), start["status"]]
    length: bytes | None = None
    for pair in start.get("headers") or ():
        if pair[0] != b"content-length":
            said.append(pair)
        elif length is None:
            length = pair[1]
        else:
            return None, None
    beginning = tuple(said)
    try:
        hash(beginning)
    except TypeError:  # lists for pairs
        return None, None
    return beginning, length


def _length_of(beginning: Beginning) -> int:
    return sum(len(name) + len(value) for name, value in beginning[2:])
