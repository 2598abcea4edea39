"""The response of an application on its way out: recorded as it goes by, stored before its last byte."""

from enum import Enum
from typing import TYPE_CHECKING

from asynctag.backends.base import Cause, Miss
from asynctag.http.asgi import Fields, Message, Send
from asynctag.http.headers import Forward, cache_status, make_etag
from asynctag.http.rules import Storable, not_modified, not_modified_headers
from asynctag.http.serving import for_nobody_else, segments_of
from asynctag.http.stored import StoredResponse, first_values
from asynctag.http.validation import VALIDATORS, confirms, updated_by
from asynctag.http.variants import varied
from asynctag.names import describe

if TYPE_CHECKING:
    from asynctag.http.exchange import Address, Exchange

#: Statuses instead of which a stale response is served, within its `stale_if_error` (RFC 5861 §4).
ERRORS = frozenset({500, 502, 503, 504})


#: What goes out with a stored response that says nothing of caching. No invalidation reaches the caches of clients:
#: they are to ask, and get a 304. What is one user's is for no other cache on the way.
FOR_CLIENTS, FOR_ITS_OWNER = (b"cache-control", b"no-cache"), (b"cache-control", b"private, no-cache")

#: About what a server takes of a body without waiting for the client, in bytes.
SOCKET_TAKES = 65_536


class Phase(Enum):
    """How far the response is."""

    EXPECTED = "the application has sent nothing of it"
    HELD = "its start is held until the first of the body is there"
    SENT = "its start is out"
    DONE = "all of it is out"
    REPLACED = "another answer took its place"
    UNCONFIRMED = "it says not modified, of something that is not stored"


class Outgoing:
    """What stands before the application as `send`."""

    _phase = Phase.EXPECTED
    _length: int | None = None  # of the body, where the application has said it
    _recording: "_Recording | None" = None
    _not_stored: str | None = None
    _confirmed: StoredResponse | None = None
    _adds = False  # a word to clients is added
    _validated = False  # the application has sent a validator of its own
    succeeded = False

    def __init__(self, exchange: "Exchange", send: Send) -> None:
        self.exchange = exchange
        self._send = send
        self._start: Message = {}
        self._held: list[bytes] = []  # chunks that wait for the end of the body

    @property
    def verdict(self) -> Storable | None:
        """What was judged of a response that is being recorded."""
        return self._recording.lifetime if self._recording is not None else None

    @property
    def added(self) -> Fields:
        """The word to clients, where one is added."""
        return (self._word_to_clients(),) if self._adds else ()

    def _word_to_clients(self) -> tuple[bytes, bytes]:
        keyed = self.exchange.policy is not None and self.exchange.policy.key is not None
        return FOR_ITS_OWNER if keyed else FOR_CLIENTS

    @property
    def unconfirmed(self) -> bool:
        """Whether the application has to be asked again, without conditions."""
        return self._phase is Phase.UNCONFIRMED

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._phase is Phase.REPLACED or self._phase is Phase.UNCONFIRMED:
            return
        begins = kind == "http.response.start" and self._phase is Phase.EXPECTED
        if begins and self.exchange.fills:  # what stands between here and the endpoint may have added to it
            message = {**message, "headers": for_nobody_else(message.get("headers") or ())}
        if self.exchange.replying or self._phase is Phase.DONE or (self._phase is Phase.EXPECTED and not begins):
            await self._send(message)  # of a hit, before a response or after it: for the server to take or refuse
        elif begins:
            await self._begin(message)
        elif kind == "http.response.body":
            await self._continue(message.get("body", b""), message.get("more_body", False))
        else:  # a file by its path, trailers: not for us to keep
            self._stop_recording("extension")
            await self._send_start(stored=False)
            if self._held:
                await self._send({"type": "http.response.body", "body": self._released(b""), "more_body": True})
            await self._send(message)

    async def answer_stale(self, error: Exception | None) -> bool:
        """Answer with a stored response instead of an error, where nothing is out yet and there is one."""
        if self._phase is not Phase.EXPECTED or self.exchange.replying:
            return False
        messages = await self.exchange.stale_instead(error)
        if messages is None:
            return False
        self._phase = Phase.REPLACED
        await self.exchange.reply(messages, self._send)
        return True

    async def _begin(self, start: Message) -> None:
        exchange, status = self.exchange, start["status"]
        if status in ERRORS and await self.answer_stale(None):
            return
        exchange.check_guards()
        self.succeeded = 200 <= status < 300
        headers = [(name.lower(), value) for name, value in start.get("headers") or ()]
        asked_about = exchange.validating
        if status == 304 and asked_about is not None:
            if not confirms(asked_about, headers):
                self._phase = Phase.UNCONFIRMED
                return
            self._confirmed, status = asked_about, asked_about.status
            headers = updated_by(asked_about, headers)
        elif status == 200 and exchange.facts.method == "HEAD":
            await exchange.compare(headers)
        self._start, self._phase = {**start, "status": status, "headers": headers}, Phase.HELD
        verdict = self._verdict(status, headers)
        if isinstance(verdict, str):
            self._stop_recording(verdict)
            await self._send_start(stored=False)
            return
        exchange.public = verdict.public
        said = first_values(headers)
        length = said.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() and len(length) < 20 else None
        if b"cache-groups" in said:
            exchange.group(headers)
            if exchange.middleware.groups:  # they go out among the tags
                headers = [pair for pair in headers if pair[0] != b"cache-groups"]
        self._recording = _Recording(verdict, exchange.middleware.max_body)
        self._validated = self._confirmed is not None or not VALIDATORS.isdisjoint(said)
        if b"cache-control" not in said and b"expires" not in said:
            self._adds = True
            headers.append(self._word_to_clients())
        self._start = {**self._start, "headers": varied(headers, exchange.policy)}

    def _verdict(self, status: int, headers: list[tuple[bytes, bytes]]) -> Storable | str:
        exchange = self.exchange
        verdict = exchange.verdict(status, headers)
        if verdict == "no-freshness" and exchange.policy is not None:
            exchange.middleware.warn_of_no_ttl(exchange.scope.name)
        return verdict

    async def _continue(self, chunk: bytes, more: bool) -> None:
        if self._confirmed is not None:
            if more:
                return
            chunk = self._confirmed.body
        exchange, recording = self.exchange, self._recording
        if recording is not None and not recording.add(bytes(chunk)):
            self._stop_recording("size")
            recording = None
        # A client that knows the length would have all of the body before it is stored.
        if recording is not None and more and (exchange.middleware.buffer_tags or recording.size == self._length):
            self._held.append(chunk)
            return
        chunk = self._released(chunk)
        if not more:
            exchange.scope.closed = True  # what is cached or tagged from here on is not part of the response
        if more or recording is None:
            # Nor does anybody wait for what this client's windows wait for.
            if recording is not None and (recording.is_long or exchange.scope.places is not None):
                exchange.let_go()
            await self._send_start(stored=False, whole=not more)  # of a body that is still to come, it is not known yet
        else:
            chunk = await self._store(recording, chunk)
        if not more:
            self._phase = Phase.DONE
            exchange.scope.hand_up()  # what is around may store this response with its last byte
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    def _released(self, chunk: bytes) -> bytes:
        """What was held, and the chunk that follows it."""
        if self._held:
            chunk = b"".join([*self._held, chunk])
            self._held = []
        return chunk

    async def _store(self, recording: "_Recording", chunk: bytes) -> bytes:
        """Store what is whole now, before its last chunk goes out: the client's next request finds it.

        Gives the chunk to send. What came in one piece goes out with its validator, or as a 304.
        """
        start, body = self._start, recording.body
        status: int = start["status"]
        headers: list[tuple[bytes, bytes]] = list(start.get("headers") or ())
        segments = segments_of(self.exchange.scope, headers, body)
        if segments is not None:
            stored = await self.exchange.store(
                start, body, recording.lifetime, validated=False, adds_cache_control=False, segments=segments
            )
            await self._send_start(stored=stored)
            return chunk
        said = first_values(headers)
        etag = said.get(b"etag")
        if status == 200 and etag is None:
            etag = make_etag(body)
            headers.append((b"etag", etag))
        whole = {**start, "headers": headers}
        stored = await self.exchange.store(
            whole, body, recording.lifetime, validated=self._validated, adds_cache_control=self._adds
        )
        if self._phase is Phase.SENT:
            return chunk
        self._start = whole
        if status == 200 and not_modified(self.exchange.facts, etag, said.get(b"last-modified")):
            self._start = {**whole, "status": 304, "headers": list(not_modified_headers(headers))}
            body = b""
        await self._send_start(stored=stored)
        return body

    async def _send_start(self, *, stored: bool, whole: bool = True) -> None:
        """Send the start of the response, with what is known of it now: of one that is not `whole`, not all tags."""
        if self._phase is not Phase.HELD:
            return
        self._phase = Phase.SENT
        middleware = self.exchange.middleware
        headers: list[tuple[bytes, bytes]] = [*(self._start.get("headers") or ())]
        if middleware.own_target is not None:
            headers = [pair for pair in headers if pair[0] != middleware.own_target]
        headers += middleware.exposed(self.exchange.scope.tags, whole=whole)
        if (status := self._cache_status(stored)) is not None:
            headers.append((b"cache-status", status))
        await self._send({**self._start, "headers": headers})

    def _cache_status(self, stored: bool) -> bytes | None:
        exchange = self.exchange
        name, miss = exchange.middleware.name, exchange.miss
        if self._recording is None:
            if exchange.policy is None and exchange.dims is None and not exchange.refused:
                return None  # nobody ever wanted responses of this URL cached
            bypass = exchange.bypass
            forward: Forward = exchange.forward if bypass is None else "bypass"
            return cache_status(fwd=forward, fwd_status=self._fwd_status, detail=bypass or self._not_stored, name=name)
        forward, detail = exchange.forward, None
        if forward == "uri-miss" and miss is not None and miss.cause is not Cause.ABSENT:
            forward, detail = "stale", why_gone(miss, exchange.address)
        return cache_status(fwd=forward, fwd_status=self._fwd_status, stored=stored, detail=detail, name=name)

    @property
    def _fwd_status(self) -> int | None:
        """The status that the application has answered with, where the client gets another (RFC 9211 §2.3)."""
        return 304 if self._confirmed is not None else None

    def _stop_recording(self, why: str) -> None:
        self._recording = None
        self._not_stored = why
        self.exchange.give_up(why)


def why_gone(miss: Miss, address: "Address") -> str:
    """Why a response that was stored at `address` cannot be served, as `Cache-Status` says it."""
    if miss.tag is None:
        return miss.cause.value
    # Something has changed it (RFC 9111 §4.4).
    return "its URL" if miss.tag == address.record_key() else describe(miss.tag, address.namespace)


class _Recording:
    """The body of a response that may be stored, as it goes by."""

    __slots__ = ("_chunks", "_limit", "lifetime", "size")

    def __init__(self, lifetime: Storable, limit: int) -> None:
        self.lifetime = lifetime
        self._limit = limit
        self.size = 0
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> bool:
        """Whether the body is still within the limit."""
        self.size += len(chunk)
        if self.size > self._limit:
            return False
        self._chunks.append(chunk)
        return True

    @property
    def is_long(self) -> bool:
        """Whether sending it may have to wait for the client."""
        return self.size > SOCKET_TAKES

    @property
    def body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
