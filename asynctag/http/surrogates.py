"""Tags in the words of other caches: groups (RFC 9875), and the keys and purges of a CDN in front.

What is lost here is served stale by somebody else, so one rule holds throughout: a purge may reach more than it was
asked for, never less.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import anyio

from asynctag.errors import ConfigurationError, PurgeError
from asynctag.http.headers import is_field_name
from asynctag.http.structured import escape, parse_string_list, unescape, write_string_list
from asynctag.tags import MAX_TAG_BYTES, check_tags

HASH_LENGTH = 16
"""Characters of a hashed key: 64 bits in hexadecimal. Where two tags meet in one, a purge of either reaches both."""


class Overflow(Enum):
    """The type of `OVERFLOW`, the only one."""

    OVERFLOW = "overflow"


OVERFLOW: Final = Overflow.OVERFLOW
"""Tags that no field can hold. A cache that stored the response would miss its purges: it must not store it."""


# --- groups ------------------------------------------------------------------------------------------


def parse_groups(lines: Iterable[bytes]) -> tuple[str, ...]:
    """The tags of the groups in `Cache-Groups` or `Cache-Group-Invalidation` (RFC 9875 §2, §3), each once, in order.

    A group is the tag of its text; percent-encoded text is decoded, as `write_groups` encodes it. Equal groups always
    are one tag (§2.1). Every group is taken, in a field of up to 64 KiB: §2 asks for 32 of 32 characters, and without
    one of them the response would outlive its invalidation. One that is empty or too long for a tag is hashed to one.

    A field that does not parse, or that has a member that is no String, has no groups (RFC 9651 §2, §4.2). The second
    field counts only in answers to unsafe methods (RFC 9875 §3), and only for its own origin (§2.1): the caller sees
    to both.
    """
    return tuple(dict.fromkeys([_tag_of(group) for group in parse_string_list(lines) or ()]))


def _tag_of(group: str) -> str:
    tag = unescape(group)
    return tag if tag and len(tag.encode()) <= MAX_TAG_BYTES else f"group:{_hash(group)}"


def write_groups(tags: Iterable[str], limit: int = 8192) -> bytes | Overflow | None:
    """The tags as a value of `Cache-Groups` or `Cache-Group-Invalidation` (RFC 9875 §2, §3), sorted, each once.

    A String holds printable ASCII: everything else in a tag is percent-encoded as UTF-8, and `%` itself too, so that
    tags and groups map one to one. `None` is no tags. `OVERFLOW` is a value above `limit` bytes, which many servers
    and proxies refuse; nothing is left out of one. (A cache need support no more than 32 groups of 32 characters.)
    """
    value = write_string_list([escape(tag) for tag in sorted(set(tags))])
    if len(value) > limit:
        return OVERFLOW
    return value or None


# --- keys for a CDN ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Purge:
    """One HTTP request that purges: data, for whatever client sends it. Its headers, which hold the credentials, are
    not in its `repr`."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes
    tags: tuple[str, ...]
    """The tags that are not surely purged unless this request succeeds."""


class PurgeService(Protocol):
    """How a CDN is told to purge: the limits of one request, and the requests themselves."""

    @property
    def most_keys(self) -> int:
        """The most keys that one request may name."""
        ...

    @property
    def most_bytes(self) -> int:
        """The most bytes that the keys of one request may have, with one more for each."""
        ...

    def purges(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> list[Purge]:
        """The requests that purge these keys: more than one where there are several caches to tell."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogates:
    """The keys by which a CDN in front knows responses, and the requests that purge them.

    `Surrogates.fastly()`, `.cloudflare()` and `.varnish()` know their vendors' limits. For another CDN give

    - `name`, the response field: `"Edge-Cache-Tag"`;
    - `delimiter`, what is put between two keys, and `forbidden`, further characters that no key may have (those of the
      delimiter, spaces and what is not printable ASCII never may);
    - `longest_key` and `longest_field`, in bytes, the field's name not counted;
    - `folds_case=True` if the CDN takes `Tag` and `tag` for one: keys are then lower-case, and a purge of one reaches
      both;
    - `hash_keys=True` to hash every key: nothing of the application shows, and long ones take less room. Purge
      everything at the CDN once when you change it: the keys of what was stored before are other ones;
    - `service`, a `PurgeService`, if `purges` is used.

    A key is its tag, unless it is too long or has a forbidden character: then it is a hash of the tag, the same in
    every process. Frozen; raises `ConfigurationError` for what cannot be meant.
    """

    name: str
    delimiter: str
    longest_key: int
    longest_field: int
    forbidden: str = ""
    folds_case: bool = False
    hash_keys: bool = False
    service: PurgeService | None = None

    def __post_init__(self) -> None:
        if not is_field_name(self.name.encode()):
            raise ConfigurationError(f"Surrogates(name={self.name!r}): this is no name of a header field")
        if not self.delimiter or not self.delimiter.isascii() or not self.delimiter.isprintable():
            raise ConfigurationError(f"Surrogates(delimiter={self.delimiter!r}): give printable ASCII, as in ','")
        if self.longest_key < HASH_LENGTH:
            raise ConfigurationError(
                f"Surrogates(longest_key={self.longest_key}): give {HASH_LENGTH} or more, the length of a hashed key"
            )
        if self.longest_field < self.longest_key:
            raise ConfigurationError(
                f"Surrogates(longest_field={self.longest_field}): this is shorter than one key, which may have"
                f" {self.longest_key} bytes"
            )

    @classmethod
    def fastly(
        cls,
        service_id: str | None = None,
        api_token: str | None = None,
        *,
        soft: bool = False,
        hash_keys: bool = False,
        api: str = "https://api.fastly.com",
    ) -> "Surrogates":
        """`Surrogate-Key`, for Fastly, which takes it off before the client sees it.

        Keys are divided by spaces, of the characters 0x21 to 0x7E, of at most 1,024 bytes; the field of at most
        16,384: Fastly ignores the key that goes beyond and all that follow (its page "Surrogate-Key"). One request
        purges up to 256 keys (its page "Purging API"). `soft=True` marks responses stale instead of removing them.

        `service_id` and `api_token`, of a token that may `purge_select`, are needed for `purges` alone, and never
        shown. `api` is another base URL.
        """
        account = _account("fastly", "service_id", service_id, api_token)
        base = _base_url("fastly(api=)", api)
        return cls(
            name="Surrogate-Key",
            delimiter=" ",
            longest_key=1024,
            longest_field=16_384,
            hash_keys=hash_keys,
            service=None if account is None else _Fastly(base, *account, soft),
        )

    @classmethod
    def cloudflare(
        cls,
        zone_id: str | None = None,
        api_token: str | None = None,
        *,
        hash_keys: bool = False,
        api: str = "https://api.cloudflare.com/client/v4",
    ) -> "Surrogates":
        """`Cache-Tag`, for Cloudflare, which takes it off before the client sees it.

        Keys are divided by commas, of printable ASCII without spaces, compared without regard to case; a purge takes
        keys of at most 1,024 characters, and the field has at most 16 KB, taken for 16,000 bytes (its page "Purge
        cache by cache-tags"). One request purges up to 100 keys (its page "Purge cache", under the limits).

        `zone_id` and `api_token`, of a token that may purge the cache, are needed for `purges` alone, and never shown.
        `api` is another base URL.
        """
        account = _account("cloudflare", "zone_id", zone_id, api_token)
        base = _base_url("cloudflare(api=)", api)
        return cls(
            name="Cache-Tag",
            delimiter=",",
            longest_key=1024,
            longest_field=16_000,
            folds_case=True,
            hash_keys=hash_keys,
            service=None if account is None else _Cloudflare(base, *account),
        )

    @classmethod
    def varnish(
        cls,
        hosts: Iterable[str] = (),
        *,
        soft: bool = False,
        purge_header: str | None = None,
        longest_field: int = 8000,
        hash_keys: bool = False,
    ) -> "Surrogates":
        """`xkey`, for Varnish with its module of that name (man page vmod_xkey(3)).

        Keys are divided by spaces or commas. Of a field's length Varnish has a limit of its own, `http_resp_hdr_len`
        and `http_req_hdr_len`, 8k by default (man page varnishd(1)): set `longest_field` if you set these. Varnish
        sends the field on: unset it in `vcl_deliver`, or use `hash_keys=True`.

        `hosts` are the base URLs of all caches, as in `["http://10.0.0.1:6081"]`: each is sent every purge, a `PURGE`
        of `/` whose field `purge_header` names the keys, divided by spaces: by default `xkey-purge`, or
        `xkey-softpurge` with `soft=True`. It needs VCL that answers 200 whether or not there was something to purge::

            if (req.method == "PURGE" && client.ip ~ purgers) {
                if (req.http.xkey-purge) { set req.http.n = xkey.purge(req.http.xkey-purge); }
                if (req.http.xkey-softpurge) { set req.http.n = xkey.softpurge(req.http.xkey-softpurge); }
                return (synth(200, "Purged " + req.http.n));
            }
        """
        if isinstance(hosts, str):
            raise ConfigurationError(f"varnish(hosts={hosts!r}): this is one string: give a list, [{hosts!r}]")
        urls = tuple([_base_url("varnish(hosts=)", host) for host in hosts])
        told_in = purge_header if purge_header is not None else ("xkey-softpurge" if soft else "xkey-purge")
        if not is_field_name(told_in.encode()):
            raise ConfigurationError(f"varnish(purge_header={told_in!r}): this is no name of a header field")
        return cls(
            name="xkey",
            delimiter=" ",
            forbidden=",",
            longest_key=1024,
            longest_field=longest_field,
            hash_keys=hash_keys,
            service=_Varnish(urls, told_in, longest_field) if urls else None,
        )

    def header(self, tags: Iterable[str]) -> tuple[bytes, bytes] | Overflow | None:
        """The field (lower-case name, value) that gives a response its keys, sorted. `None` is no tags.

        Where the plain keys are too long together, all are hashed. `OVERFLOW` is where even that is too long: no key
        is left out, so the CDN must not store the response (as with `CDN-Cache-Control: no-store`).
        """
        wanted = set(tags)
        if not wanted:
            return None
        value = self.delimiter.join(sorted({self._plain_key(tag) or _hash(tag) for tag in wanted}))
        if len(value) > self.longest_field:
            value = self.delimiter.join(sorted({_hash(tag) for tag in wanted}))
        if len(value) > self.longest_field:
            return OVERFLOW
        return self.name.lower().encode("ascii"), value.encode("ascii")

    def keys(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Every key under which responses with these tags may be stored, sorted: a purge names them all.

        A tag may have two, itself and its hash, since `header` hashes all keys of a response that has many.
        """
        return tuple(sorted(self._tags_by_key(tags)))

    def purges(self, tags: Iterable[str]) -> list[Purge]:
        """The requests that purge these tags, as few as the CDN's limits allow. No tags are no requests.

        Raises `ConfigurationError` without what the constructor needs to know for it.
        """
        service = self.required_service()
        purges: list[Purge] = []
        by_key = self._tags_by_key(tags)
        for keys in _batches(sorted(by_key), service.most_keys, service.most_bytes):
            purges += service.purges(keys, tuple(dict.fromkeys([tag for key in keys for tag in by_key[key]])))
        return purges

    def required_service(self) -> PurgeService:
        """How to purge; raises `ConfigurationError` if the constructor was told nothing of it."""
        if self.service is None:
            raise ConfigurationError(
                f"these Surrogates write {self.name} and cannot purge: give fastly() service_id and api_token,"
                " cloudflare() zone_id and api_token, varnish() hosts, or Surrogates() a service"
            )
        return self.service

    def _tags_by_key(self, tags: Iterable[str]) -> dict[str, list[str]]:
        by_key: dict[str, list[str]] = {}
        for tag in check_tags(tags):
            by_key.setdefault(_hash(tag), []).append(tag)
            plain = self._plain_key(tag)
            if plain is not None:
                by_key.setdefault(plain, []).append(tag)
        return by_key

    def _plain_key(self, tag: str) -> str | None:
        if self.hash_keys or len(tag) > self.longest_key or not _is_visible(tag):
            return None
        if any(character in tag for character in self.delimiter + self.forbidden):
            return None
        return tag.lower() if self.folds_case else tag


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=HASH_LENGTH // 2).hexdigest()


def _batches(keys: Sequence[str], most_keys: int, most_bytes: int) -> Iterator[tuple[str, ...]]:
    batch: list[str] = []
    size = 0
    for key in keys:
        if batch and (len(batch) == most_keys or size + len(key) + 1 > most_bytes):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(key)
        size += len(key) + 1
    if batch:
        yield tuple(batch)


# --- the vendors' requests ---------------------------------------------------------------------------

_UNBOUNDED: Final = 2**62


@dataclass(frozen=True, slots=True)
class _Fastly:
    api: str
    service_id: str
    api_token: str = field(repr=False)
    soft: bool
    most_keys = 256
    most_bytes = _UNBOUNDED

    def purges(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> list[Purge]:
        headers = [("Fastly-Key", self.api_token), ("Content-Type", "application/json"), ("Accept", "application/json")]
        if self.soft:
            headers.append(("Fastly-Soft-Purge", "1"))
        url = f"{self.api}/service/{quote(self.service_id, safe='')}/purge"
        return [Purge("POST", url, tuple(headers), json.dumps({"surrogate_keys": keys}).encode(), tags)]


@dataclass(frozen=True, slots=True)
class _Cloudflare:
    api: str
    zone_id: str
    api_token: str = field(repr=False)
    most_keys = 100
    most_bytes = _UNBOUNDED

    def purges(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> list[Purge]:
        headers = (("Authorization", f"Bearer {self.api_token}"), ("Content-Type", "application/json"))
        url = f"{self.api}/zones/{quote(self.zone_id, safe='')}/purge_cache"
        return [Purge("POST", url, headers, json.dumps({"tags": keys}).encode(), tags)]


@dataclass(frozen=True, slots=True)
class _Varnish:
    hosts: tuple[str, ...]
    header: str
    most_bytes: int
    most_keys = _UNBOUNDED

    def purges(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> list[Purge]:
        headers = ((self.header, " ".join(keys)),)
        return [Purge("PURGE", f"{host}/", headers, b"", tags) for host in self.hosts]


def _account(vendor: str, option: str, account: str | None, api_token: str | None) -> tuple[str, str] | None:
    """The account to purge and its token, or `None` without both. One without the other is an error."""
    if account is None and api_token is None:
        return None
    for name, value in ((option, account), ("api_token", api_token)):
        if not value:
            raise ConfigurationError(
                f"{vendor}(): {name} is missing: a purge needs {option} and api_token, or give none"
            )
        if not _is_visible(value):
            raise ConfigurationError(f"{vendor}({name}=): its value has spaces, or is not printable ASCII: strip it")
    return account or "", api_token or ""


def _base_url(option: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_plain = False
    if not is_plain or "?" in url or "#" in url or not _is_visible(url):
        shown = "the URL given" if "@" in url else repr(url)
        raise ConfigurationError(
            f"{option}: {shown} is no base URL: write it as in 'http://10.0.0.1:6081', without credentials, ? or #"
        )
    return url.rstrip("/")


# --- the purger --------------------------------------------------------------------------------------


class Purger:
    """Purges tags at a CDN: `await purger(["product:635"])`.

    `send` is the application's own HTTP client: it sends one `Purge` and returns the status of the answer. With httpx::

        async def send(purge: Purge) -> int:
            answer = await client.request(purge.method, purge.url, headers=purge.headers, content=purge.body)
            return answer.status_code

    Call it *after* `cache.invalidate(...)`, or the CDN may fetch the old response again. A purge reaches what the CDN
    has: a response that was on its way there meanwhile is stored after it, so give responses a lifetime at the CDN
    that you can bear.

    At most `side_by_side` requests of one call are under way at once. There is no retry: that is `send`'s to know.
    """

    def __init__(
        self, surrogates: Surrogates, send: Callable[[Purge], Awaitable[int]], *, side_by_side: int = 8
    ) -> None:
        surrogates.required_service()
        if not callable(send):
            raise ConfigurationError(f"Purger(send={send!r}): give an async function that sends a Purge")
        if side_by_side < 1:
            raise ConfigurationError(f"Purger(side_by_side={side_by_side}): give 1 or more")
        self._surrogates = surrogates
        self._send = send
        self._side_by_side = side_by_side

    async def __call__(self, tags: Iterable[str]) -> None:
        """Purge everything stored under these tags.

        Every request is tried, whatever became of the others. Raises `PurgeError`, which names the tags that were not
        surely purged, if a status is not 2xx or `send` raises; `InvalidTagError` for what is no tag.
        """
        failures: list[tuple[Purge, int | Exception]] = []
        limit = anyio.Semaphore(self._side_by_side)

        async def purge(request: Purge) -> None:
            async with limit:
                try:
                    status = await self._send(request)
                    if not 200 <= status < 300:
                        failures.append((request, status))
                except Exception as error:
                    failures.append((request, error))

        requests = self._surrogates.purges(tags)
        async with anyio.create_task_group() as tasks:
            for request in requests:
                tasks.start_soon(purge, request)
        if failures:
            raise _purge_error(failures, len(requests)) from next(
                (reason for _, reason in failures if isinstance(reason, Exception)), None
            )


def _purge_error(failures: Sequence[tuple[Purge, int | Exception]], sent: int) -> PurgeError:
    tags = tuple(dict.fromkeys([tag for request, _ in failures for tag in request.tags]))
    reasons = dict.fromkeys(
        [type(reason).__name__ if isinstance(reason, Exception) else f"status {reason}" for _, reason in failures]
    )
    shown = ", ".join(map(repr, tags[:5])) + (f" and {len(tags) - 5} more" if len(tags) > 5 else "")
    return PurgeError(
        f"{len(failures)} of {sent} requests to purge failed ({', '.join(reasons)}), so the CDN may still serve"
        f" responses of {shown}: purge them again",
        tags,
    )
