"""The rules of HTTP caching once more, slow and plain: which answers a shared cache may give, by the RFCs' text.

It shares no code with `asynctag.http`. It sees every exchange between the cache and the application, and says of an
answer to a client why it may not be given. It never asks for a hit: a cache may always ask the application.

Where the cache promises more than the RFCs ask for, so does this: no answer to a request with a cookie, and none that
sets one, is used again; a request with `Authorization` gets nothing stored that is not for everybody; `Location` and
`Content-Location` of an unsafe request's answer invalidate too; `private` and `no-cache` with field names count whole.
"""

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

Headers = list[tuple[bytes, bytes]]

#: What an origin's failure is, for `stale-if-error` (RFC 5861 §4).
FAILURES = {500, 502, 503, 504}

#: Statuses that a cache understands (RFC 9110 §15), for `must-understand`.
UNDERSTOOD = {200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 451, 501}

#: What belongs to one connection or one answer, and is not compared (RFC 9111 §3.1, RFC 9110 §7.6.1).
NOT_COMPARED = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade",
    b"age", b"cache-status", b"content-length",
}  # fmt: skip

#: What a request is asked on conditions with (RFC 9110 §13.1, §14.2).
CONDITIONS = {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range"}

#: What a 304 and a 206 have to repeat of the 200 (RFC 9110 §15.4.5, §15.3.7).
REPEATED = {b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary"}

#: What a 304 may leave as it was stored, since the body is read by it (RFC 9111 §3.2).
OF_THE_BODY = {b"content-encoding", b"content-range", b"content-type", b"etag"}

NAMING = (b"location", b"content-location")


@dataclass
class Request:
    method: str
    url: str
    headers: Headers

    def lines(self, name: bytes) -> list[bytes]:
        return lines(self.headers, name)

    def value(self, name: bytes) -> bytes | None:
        found = self.lines(name)
        return b", ".join(found) if found else None


@dataclass
class Answer:
    """What a client got. With `crashed`, an error before anything of it was sent."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    crashed: bool = False


@dataclass
class Exchange:
    """A request as the cache sent it, and the application's answer. Times are seconds since the epoch.

    `for_client`: the answer may go on to the client who asks just now. A renewal in the background has none.
    """

    request: Request
    answer: Answer
    asked: float
    answered: float
    tags: frozenset[str]
    for_client: bool = True


@dataclass
class Candidate:
    """A response that the cache may have stored, as it was received or as a later answer has updated it."""

    request: Request
    status: int
    headers: Headers
    body: bytes
    tags: frozenset[str]
    age: float  # when it was received
    received: float
    alive: bool = True
    #: What fields that may stay as they were stored may be too (RFC 9111 §3.2).
    before: Headers = field(default_factory=list)
    by: Exchange | None = None

    def value(self, name: bytes) -> bytes | None:
        found = lines(self.headers, name)
        return found[0] if found else None


@dataclass
class Verdict:
    """How an answer came about: `kind` is for counting. `violations` are empty where it may be given."""

    kind: str
    violations: list[str] = field(default_factory=list)


# --- fields (RFC 9110 §5, RFC 9111 §5.2, RFC 9213 §2.1)


def lines(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found.lower() == name]


def directives(values: list[bytes]) -> dict[str, list[str | None]]:
    """The directives of `Cache-Control`, each with its arguments in their order."""
    text = b",".join(values).decode("latin-1")
    found: dict[str, list[str | None]] = {}
    at = 0
    while at < len(text):
        name, argument, in_quotes = "", None, False
        while at < len(text) and (in_quotes or text[at] != ","):
            letter = text[at]
            if in_quotes and letter == "\\" and at + 1 < len(text):
                at += 1
                argument = (argument or "") + text[at]
            elif letter == '"' and argument is not None:
                in_quotes = not in_quotes
            elif letter == "=" and argument is None:
                argument = ""
            elif argument is None:
                name += letter
            else:
                argument += letter
            at += 1
        at += 1
        if name.strip():
            found.setdefault(name.strip().lower(), []).append(None if argument is None else argument.strip(" \t"))
    return found


_MEMBER = re.compile(r'([a-z*][a-z0-9_\-.*]*)(?:=(-?[0-9]{1,15}|"[^"\\]*"|[A-Za-z*][A-Za-z0-9.*-]*))?(?:;[a-z]+)*')


def targeted_directives(values: list[bytes]) -> dict[str, list[str | None]] | None:
    """Those of a targeted field, `None` where it is not there, empty or does not parse (RFC 9213 §2.2)."""
    text = ",".join(value.decode("latin-1") for value in values).strip()
    if not text:
        return None
    found: dict[str, list[str | None]] = {}
    for part in text.split(","):
        member = _MEMBER.fullmatch(part.strip(" \t"))
        if member is None:
            return None
        name, value = member[1], member[2]
        of_time = name in ("max-age", "s-maxage", "stale-while-revalidate", "stale-if-error")
        wrong_type = (value is None or not value.lstrip("-").isdigit()) if of_time else value is not None
        found.pop(name, None)  # the last one counts
        if not wrong_type:
            found[name] = [value]
    return found


def delta(said: dict[str, list[str | None]], name: str) -> int | None:
    """The seconds of a directive: the first of several; what cannot be read means stale (RFC 9111 §4.2.1)."""
    if name not in said:
        return None
    first = said[name][0]
    if first is None or not re.fullmatch("[0-9]+", first):
        return 0
    return min(int(first), 2**31)


def date_of(value: bytes | None) -> float | None:
    if value is None:
        return None
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"):
        try:
            return datetime.strptime(value.decode("latin-1").strip(), form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None


def age_field(headers: Headers) -> int:
    """The seconds in `Age`: the first of several, and none where it cannot be read (RFC 9111 §5.1)."""
    first = b",".join(lines(headers, b"age")).split(b",")[0].strip()
    return int(first) if re.fullmatch(rb"[0-9]+", first) else 0


def tag_of(value: bytes | None) -> tuple[bool, bytes] | None:
    """Whether an entity tag is weak, and its text; `None` for what is no entity tag (RFC 9110 §8.8.3)."""
    found = re.fullmatch(rb'(W/)?("[^"\x00-\x20\x7f]*")', (value or b"").strip())
    return None if found is None else (found[1] is not None, found[2])


def same_tag(one: bytes | None, other: bytes | None, *, strongly: bool = False) -> bool:
    """RFC 9110 §8.8.3.2."""
    first, second = tag_of(one), tag_of(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return not (strongly and (first[0] or second[0]))


def not_modified(request: Request, etag: bytes | None, last_modified: bytes | None) -> bool:
    """Whether a client's conditions say that it has this representation already (RFC 9110 §13.2.2)."""
    wanted = request.value(b"if-none-match")
    if wanted is not None:
        if wanted.strip() == b"*":
            return True
        members = [one for one in wanted.split(b",") if one.strip()]
        return all(tag_of(one) for one in members) and any(same_tag(one, etag) for one in members)
    since, modified = date_of(request.value(b"if-modified-since")), date_of(last_modified)
    return since is not None and modified is not None and modified <= since


def span_of(value: bytes, size: int) -> tuple[int, int] | str:
    """The first byte of a single range and the one after its last; else "whole" or "none" (RFC 9110 §14.1.2)."""
    found = re.fullmatch(rb"bytes=([0-9]*)-([0-9]*)", value.strip())
    if found is None or (not found[1] and not found[2]):
        return "whole"
    if not found[1]:
        length = int(found[2])
        if not length:
            return "none"
        return "whole" if not size else (max(0, size - length), size)
    first = int(found[1])
    if found[2] and int(found[2]) < first:
        return "whole"
    if first >= size:
        return "none"
    return first, min(size, int(found[2]) + 1) if found[2] else size


def compared(headers: Headers) -> dict[bytes, list[bytes]]:
    """The end-to-end fields, by name."""
    listed = {one.strip().lower() for value in lines(headers, b"connection") for one in value.split(b",")}
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.lower() not in NOT_COMPARED | listed:
            found.setdefault(name.lower(), []).append(value)
    return found


# --- one response


@dataclass
class Said:
    """What a response says of caching to a shared cache: by a targeted field, or else by the plain ones (RFC 9213)."""

    flags: dict[str, list[str | None]]
    lifetime: float | None
    declared: bool

    def has(self, *names: str) -> bool:
        return any(name in self.flags for name in names)

    def grants(self, name: str) -> bool:
        """Whether a directive that allows more is there; it takes no argument."""
        return None in self.flags.get(name, [])

    @property
    def never_stale(self) -> bool:
        """RFC 9111 §4.2.4."""
        return self.has("must-revalidate", "proxy-revalidate", "s-maxage", "no-cache")


def said_by(candidate: Candidate) -> Said:
    """RFC 9111 §4.2.1, RFC 9213 §2.2."""
    targeted = targeted_directives(lines(candidate.headers, b"cdn-cache-control"))
    flags = directives(lines(candidate.headers, b"cache-control")) if targeted is None else targeted
    lifetime: float | None = delta(flags, "s-maxage")
    if lifetime is None:
        lifetime = delta(flags, "max-age")
    expires = candidate.value(b"expires")
    if lifetime is None and targeted is None and expires is not None:
        end, start = date_of(expires), date_of(candidate.value(b"date"))
        lifetime = 0.0 if end is None else end - (candidate.received if start is None else start)
    declared = None in flags.get("public", []) or "s-maxage" in flags or (targeted is not None and lifetime is not None)
    return Said(flags, lifetime, declared)


def why_not_stored(candidate: Candidate, *, declared_only: bool) -> str | None:
    """Why a shared cache may not store this response (RFC 9111 §3, §3.5, §5.2), or `None`."""
    said = said_by(candidate)
    request, status = candidate.request, candidate.status
    if request.method != "GET":
        return "not an answer to GET"
    if status in (206, 304) or lines(candidate.headers, b"content-range"):
        return f"a {status} is no whole response"
    if said.has("must-understand") and status not in UNDERSTOOD:
        return "a status that must be understood"
    if said.has("no-store") and not said.grants("must-understand"):
        return "no-store"
    if "no-store" in directives(request.lines(b"cache-control")):
        return "the request said no-store"
    if said.has("private"):
        return "private"
    if lines(candidate.headers, b"set-cookie"):
        return "set-cookie"
    if request.lines(b"cookie"):
        return "the request had a cookie"
    if request.lines(b"authorization") and not (said.grants("public") or said.has("s-maxage", "must-revalidate")):
        return "the request had Authorization (§3.5)"
    if said.lifetime is None:
        return "no explicit freshness"
    if declared_only and not said.declared:
        return "it was not declared to be for shared caches"
    return None


def varies(candidate: Candidate, request: Request) -> bool:
    """Whether the request differs from that of the response by what its `Vary` names (RFC 9111 §4.1)."""
    names = [one.strip().lower() for line in lines(candidate.headers, b"vary") for one in line.split(b",")]
    return any(name == b"*" or candidate.request.value(name) != request.value(name) for name in names if name)


def why_not_reused(candidate: Candidate, request: Request, now: float, *, failed: bool) -> str | None:
    """Why a stored response may not answer this request without asking (RFC 9111 §4, §5.2.1), or `None`.

    `failed`: the application was asked, and answered with an error.
    """
    said = said_by(candidate)
    if not candidate.alive:
        return "it was invalidated (§4.4)"
    if request.method not in ("GET", "HEAD"):
        return f"{request.method} is not answered from a cache"
    if request.lines(b"cookie"):
        return "the request has a cookie"
    if request.lines(b"authorization") and not (said.grants("public") or said.has("s-maxage", "must-revalidate")):
        return "the request has Authorization, and the response is not for everybody"
    if varies(candidate, request):
        return "its Vary does not match (§4.1)"
    if said.has("no-cache"):
        return "no-cache (§5.2.2.4)"

    asked = directives(request.lines(b"cache-control"))
    if not request.lines(b"cache-control") and "no-cache" in directives(request.lines(b"pragma")):
        asked = {"no-cache": [None]}
    age = candidate.age + now - candidate.received
    lifetime = said.lifetime or 0
    stale_for = age - lifetime
    if "no-cache" in asked:
        return "the request said no-cache (§5.2.1.4)"
    if failed and not said.never_stale and stale_for <= (delta(said.flags, "stale-if-error") or 0):
        return None  # whatever else is said of freshness (RFC 5861 §4)
    wanted_age, wanted_left = delta(asked, "max-age"), delta(asked, "min-fresh")
    if wanted_age is not None and age > wanted_age:
        return f"its age is {age}, above the request's max-age={wanted_age} (§5.2.1.1)"
    if wanted_left is not None and -stale_for < wanted_left:
        return f"it is fresh for {-stale_for}, less than the request's min-fresh={wanted_left} (§5.2.1.3)"
    if stale_for < 0:
        return None
    if said.never_stale:
        return f"it is stale for {stale_for}, and may never be (§4.2.4)"
    if "max-stale" in asked and (asked["max-stale"][0] is None or stale_for <= (delta(asked, "max-stale") or 0)):
        return None
    if wanted_age is not None:
        return "it is stale, and the request said max-age without max-stale (§5.2.1.1)"
    if stale_for <= (delta(said.flags, "stale-while-revalidate") or 0):
        return None
    return f"it is stale: age {age}, lifetime {lifetime} (§4.2)"


# --- the history


class Oracle:
    """Sees what the cache and the application say to each other, and judges what clients get.

    `declared_only`: plain `max-age` and `Expires` are not enough, as with `store="declared"`.
    """

    def __init__(self, *, declared_only: bool) -> None:
        self.declared_only = declared_only
        self.candidates: list[Candidate] = []
        #: The tags that the cache gave to bodies without one, and the body that each stands for.
        self.given_tags: dict[bytes, bytes] = {}

    def exchanged(self, exchange: Exchange) -> None:
        """Take note of what the application has answered."""
        request, answer = exchange.request, exchange.answer
        if answer.crashed:
            return
        if request.method not in ("GET", "HEAD"):
            if 200 <= answer.status <= 399:  # §4.4
                self._invalidate_url(request.url)
                for name in NAMING:
                    for value in lines(answer.headers, name):
                        self._invalidate_url(value.decode("latin-1"))
            return
        age = age_field(answer.headers) + exchange.answered - exchange.asked  # §4.2.3
        if answer.status == 304 or (request.method == "HEAD" and answer.status == 200):
            for candidate in list(self.candidates):
                if self._selects(exchange, candidate):
                    self._update(exchange, candidate, age)
        if request.method == "GET" and answer.status != 304:
            fresh = Candidate(
                request, answer.status, answer.headers, answer.body, exchange.tags, age, exchange.answered, by=exchange
            )
            self.candidates.append(fresh)

    def _selects(self, exchange: Exchange, candidate: Candidate) -> bool:
        """Whether a 304, or a `HEAD`'s 200, speaks of this stored response (RFC 9111 §4.3.4, §4.3.5)."""
        request, headers = exchange.request, exchange.answer.headers
        if candidate.request.url != request.url or candidate.status != 200 or varies(candidate, request):
            return False
        if why_not_stored(candidate, declared_only=self.declared_only) is not None:
            return False
        etag, modified = lines(headers, b"etag"), lines(headers, b"last-modified")
        if request.method == "HEAD":
            length = lines(headers, b"content-length")
            same_length = not length or length[0] == b"%d" % len(candidate.body)
            same_etag = not etag or same_tag(etag[0], candidate.value(b"etag"))
            return same_length and same_etag and (not modified or modified[0] == candidate.value(b"last-modified"))
        if etag:
            strong = tag_of(etag[0])
            return same_tag(etag[0], candidate.value(b"etag"), strongly=strong is not None and not strong[0])
        if modified:
            return modified[0] == candidate.value(b"last-modified")
        return not_modified(request, candidate.value(b"etag"), candidate.value(b"last-modified"))

    def _update(self, exchange: Exchange, candidate: Candidate, age: float) -> None:
        """RFC 9111 §3.2."""
        sent = exchange.answer.headers
        names = {name for name, _ in sent} - {b"content-length"}
        headers = [pair for pair in candidate.headers if pair[0] not in names]
        headers += [pair for pair in sent if pair[0] in names]
        updated = replace(
            candidate,
            headers=headers,
            before=candidate.headers,
            tags=candidate.tags | exchange.tags,
            age=age,
            received=exchange.answered,
            alive=True,
            by=exchange,
        )
        self.candidates.append(updated)

    def _invalidate_url(self, url: str) -> None:
        for candidate in self.candidates:
            if candidate.request.url == url:
                candidate.alive = False

    def invalidated(self, tag: str) -> None:
        for candidate in self.candidates:
            if tag in candidate.tags:
                candidate.alive = False

    # --- judging ---------------------------------------------------------------------------------------

    def judge(self, request: Request, answer: Answer, exchanges: list[Exchange], now: float) -> Verdict:
        """What is wrong with this answer. `exchanges` were made for it, and have been noted."""
        only_if_cached = request.method in ("GET", "HEAD") and "only-if-cached" in directives(
            request.lines(b"cache-control")
        )
        if only_if_cached:
            if exchanges:
                return Verdict("forwarded", ["the application was asked despite only-if-cached (§5.2.1.7)"])
            if answer.status == 504 and not answer.body:
                return Verdict("only-if-cached")
        for exchange in exchanges:
            why = self._why_not_asked(request, exchange.request)
            if why is not None:
                return Verdict("forwarded", [why])
        why_not: list[str] = []
        for exchange in exchanges:
            why = self._why_not_passed_on(request, answer, exchange)
            if why is None:
                self._learn_tag(answer, exchange.answer.headers, exchange.answer.body)
                return Verdict("forwarded")
            why_not.append(f"not what the application said: {why}")
            for candidate in self.candidates:
                if candidate.by is exchange and exchange.answer.status == 304:
                    why = self._why_not_this(request, answer, candidate, cookies=exchange.answer.headers)
                    if why is None:
                        return Verdict("validated")
                    why_not.append(f"not what was confirmed: {why}")
        failed = any(one.answer.crashed or one.answer.status in FAILURES for one in exchanges)
        kind = {304: "hit: 304", 206: "hit: 206", 416: "hit: 416"}.get(answer.status, "hit")
        for candidate in reversed(self.candidates):
            if candidate.request.url != request.url or (candidate.by in exchanges):
                continue
            why = (
                self._why_not_this(request, answer, candidate)
                or self._why_not_this_age(answer, candidate, now)
                or why_not_stored(candidate, declared_only=self.declared_only)
                or why_not_reused(candidate, request, now, failed=failed)
            )
            if why is None:
                self._learn_tag(answer, candidate.headers, candidate.body)
                stale = candidate.age + now - candidate.received >= (said_by(candidate).lifetime or 0)
                if request.method == "HEAD":
                    kind += ": HEAD"
                return Verdict(kind + (": instead of an error" if failed else ": stale" if stale else ""))
            why_not.append(f"not {dict(candidate.headers).get(b'x-serial')!r} of {candidate.received}: {why}")
        return Verdict(kind, why_not or ["nothing like it was ever received"])

    def _learn_tag(self, answer: Answer, headers: Headers, body: bytes) -> None:
        """The entity tag that the cache gave to a body without one stands for that body from now on.

        Only a whole answer tells which body that is.
        """
        for etag in lines(answer.headers, b"etag"):
            if answer.status == 200 and answer.body == body and not lines(headers, b"etag"):
                self.given_tags[etag] = body

    def _why_not_asked(self, request: Request, sent: Request) -> str | None:
        """Why the application should not have been asked this for the client."""
        if (request.method, request.url) != (sent.method, sent.url):
            return "the application was asked something else"
        if [one for one in request.headers if one[0] not in CONDITIONS] != [
            one for one in sent.headers if one[0] not in CONDITIONS
        ]:
            return "the application was asked with other headers"
        return None

    def _why_not_passed_on(self, request: Request, answer: Answer, exchange: Exchange) -> str | None:
        """Why this answer is not that of the application."""
        theirs = exchange.answer
        if answer.crashed or theirs.crashed:
            return None if answer.crashed and theirs.crashed else "one of them failed"
        own_conditions = request.headers == exchange.request.headers
        if theirs.status in (206, 304, 416) and not own_conditions:
            return f"a {theirs.status} to what the client did not ask"
        as_received = Candidate(
            request, theirs.status, theirs.headers, theirs.body, exchange.tags, 0, exchange.answered
        )
        if theirs.status == answer.status:
            if answer.body != (b"" if request.method == "HEAD" else theirs.body):
                return "another body"
            return self._why_not_these_fields(answer, as_received, whole=True)
        if answer.status == 304:
            return self._why_not_this(request, answer, as_received, cookies=theirs.headers)
        return f"{theirs.status} became {answer.status}"

    def _why_not_this(
        self, request: Request, answer: Answer, candidate: Candidate, *, cookies: Headers | None = None
    ) -> str | None:
        """Why this answer is not made of that response: whole, as a 304, or in part."""
        etag = answer_etag = next(iter(lines(answer.headers, b"etag")), None)
        if candidate.value(b"etag") is not None:
            etag = candidate.value(b"etag")
        elif etag is None:
            etag = next((given for given, body in self.given_tags.items() if body == candidate.body), None)
        modified, size = candidate.value(b"last-modified"), len(candidate.body)
        length = lines(answer.headers, b"content-length")
        if answer_etag is not None and candidate.value(b"etag") is None:
            if self.given_tags.get(answer_etag, candidate.body) != candidate.body:
                return "its entity tag is another body's"
        if answer.status == 304:
            if candidate.status != 200:
                return f"a 304 of a {candidate.status}"
            if answer.body:
                return "a 304 with a body"
            if not not_modified(request, etag, modified):
                return "the client's conditions do not match (RFC 9110 §13.2.2)"
            return self._why_not_these_fields(answer, candidate, whole=False, cookies=cookies)
        if answer.status in (206, 416) and candidate.status == 200:
            asked = request.value(b"range")
            if asked is None or request.method != "GET":
                return f"a {answer.status} without a range"
            if not_modified(request, etag, modified):
                return f"a {answer.status} where a 304 comes first (RFC 9110 §13.2.2)"
            if not self._if_range_holds(request, candidate, etag, modified):
                return "If-Range does not hold (RFC 9110 §13.1.5)"
            span = span_of(asked, size)
            content_range = b"".join(lines(answer.headers, b"content-range"))
            if answer.status == 416:
                if span != "none" or content_range != b"bytes */%d" % size or answer.body:
                    return "not a 416 of it (RFC 9110 §15.5.17)"
                known = compared(candidate.headers)
                fields = compared(answer.headers).items()
                invented = [n for n, v in fields if n != b"content-range" and known.get(n) != v]
                return f"it has {invented} of its own" if invented else None
            if isinstance(span, str):
                return "no such part (RFC 9110 §14.1.2)"
            first, end = span
            if answer.body != candidate.body[first:end]:
                return "another part"
            if content_range != b"bytes %d-%d/%d" % (first, end - 1, size):
                return f"Content-Range {content_range!r}"
            if length and length != [b"%d" % len(answer.body)]:
                return f"Content-Length {length!r}"
            without = replace(answer, headers=[one for one in answer.headers if one[0] != b"content-range"])
            return self._why_not_these_fields(without, candidate, whole=True, cookies=cookies)
        if answer.status != candidate.status:
            return f"another status, {candidate.status}"
        if answer.body != candidate.body and (request.method != "HEAD" or answer.body):
            return "another body"  # that of a HEAD is dropped by the server: what is in between may need it
        if length and length != [b"%d" % size]:
            return f"Content-Length {length!r}"
        return self._why_not_these_fields(answer, candidate, whole=True, cookies=cookies)

    def _why_not_these_fields(
        self, answer: Answer, candidate: Candidate, *, whole: bool, cookies: Headers | None = None
    ) -> str | None:
        """Why an answer with these fields is not made of that response. `cookies` came with a confirmation."""
        expected, found, before = compared(candidate.headers), compared(answer.headers), compared(candidate.before)
        if cookies is not None:
            expected.pop(b"set-cookie", None)
            found.pop(b"set-cookie", None)
        if b"etag" not in expected:
            found.pop(b"etag", None)  # the cache's own
        if b"cache-control" not in expected and b"expires" not in expected:
            if found.get(b"cache-control") == [b"no-cache"]:  # the cache's own, for clients
                del found[b"cache-control"]
        for name in expected.keys() | found.keys():
            theirs, ours = expected.get(name), found.get(name)
            if ours == theirs or (name in OF_THE_BODY and ours is not None and ours == before.get(name)):
                continue
            if ours is None and not whole and name not in REPEATED:
                continue
            return f"its {name.decode()} was {theirs}, and is {ours}"
        return None

    def _if_range_holds(
        self, request: Request, candidate: Candidate, etag: bytes | None, modified: bytes | None
    ) -> bool:
        """RFC 9110 §13.1.5."""
        value = request.value(b"if-range")
        if value is None:
            return True
        if b'"' in value:
            return same_tag(value, etag, strongly=True)
        made = candidate.value(b"date")
        date = candidate.received if made is None else date_of(made)
        then = date_of(modified)
        return value == modified and then is not None and date is not None and date - then >= 1

    def _why_not_this_age(self, answer: Answer, candidate: Candidate, now: float) -> str | None:
        """RFC 9111 §4.2.3, §5.1."""
        age, sent = candidate.age + now - candidate.received, lines(answer.headers, b"age")
        if len(sent) != 1 or not re.fullmatch(rb"[0-9]+", sent[0]):
            return f"its Age is {sent}"
        return None if age - 1 <= int(sent[0]) <= age + 1 else f"its Age is {sent[0].decode()}, and should be {age}"
