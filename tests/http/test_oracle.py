"""Random requests to random resources: whatever is served from the cache is what the RFCs allow.

Judged by the second statement of the rules in `tests.http.oracle`. That it would find a wrong rule is tested too: a
rule is broken, and the same sequences have to find a violation.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, changes, outgoing, ranges, rules, variants
from asynctag.http import exchange as exchange_module
from asynctag.http import middleware as middleware_module
from asynctag.http.headers import CacheControl
from asynctag.testing import FakeClock
from tests.http.driver import Call, request
from tests.http.oracle import Answer, Exchange, Oracle, Request, not_modified, span_of

EPOCH = 1_700_000_000.0
URLS = ("/a", "/b", "/a?x=1")
TAGS = {"/a": ("a", "all"), "/b": ("b", "all"), "/a?x=1": ("a", "x")}


class ViolationError(AssertionError):
    """An answer that may not be given."""


# --- what happens


@dataclass(frozen=True)
class Plan:
    """How a resource answers from now on. Times are seconds; dates are relative to the answer's time."""

    status: int = 200
    cache_control: tuple[str, ...] = ()
    targeted: str | None = None
    expires: int | str | None = None
    date: int | None = None
    age: str | None = None
    vary: str | None = None
    etag: str | None = None
    modified: int | None = None
    cookie: bool = False
    hop: bool = False
    length: bool = False
    chunks: int = 1
    parts: bool = False
    short_304: bool = False
    #: How long the application takes, and the `Age` of its answers that confirm what is stored.
    takes: float = 0
    confirmed_age: str | None = None
    unsafe_status: int = 204
    location: str | None = None


@dataclass(frozen=True)
class Ask:
    url: str
    method: str
    headers: tuple[tuple[str, str], ...]
    #: Which of the entity tags that were seen go into `If-None-Match`, and which into `If-Range`.
    known_tag: int | None = None
    if_range: int | None = None


@dataclass(frozen=True)
class Change:
    """Another plan, another status of the same, or another version by the same."""

    url: str
    plan: Plan | None = None
    status: int | None = None


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Invalidate:
    tag: str


Step = Ask | Change | Wait | Invalidate

_seldom = st.sampled_from([False] * 11 + [True])


def _mostly_none(*values: Any, nones: int) -> st.SearchStrategy[Any]:
    return st.sampled_from([*[None] * nones, *values])


_common = (
    "max-age=30",
    "public, max-age=20",
    "public, max-age=10, stale-if-error=300",
    "max-age=60, s-maxage=10",
    "public, max-age=10, must-revalidate, stale-if-error=60, stale-while-revalidate=60",
    "public, max-age=5, stale-while-revalidate=60",
    "public, max-age=5, stale-while-revalidate=5, stale-if-error=300",
)
_rarer = (
    "public",
    "max-age=30",
    "max-age=60, s-maxage=5",
    "max-age=5, s-maxage=60",
    "private",
    'private="set-cookie"',
    "no-store",
    "No-Cache",
    'no-cache="x-a"',
    "must-revalidate",
    "proxy-revalidate",
    "must-understand, no-store",
    "stale-while-revalidate=20",
    "stale-if-error=60",
    "max-age=-1",
    "max-age=x",
    "max-age",
    'max-age="30"',
    "max-age=99999999999999999999",
    "public=1",
    "PUBLIC, Max-Age=20",
    "max-age=5, max-age=60",
    'x="private, no-store", max-age=20',
    ", ,",
)
_odd_plans = st.builds(
    Plan,
    status=st.sampled_from([200] * 14 + [204, 301, 404, 404, 500, 503, 0]),
    cache_control=st.tuples(_mostly_none(*_common * 2, nones=2), _mostly_none(*_rarer, nones=20)).map(
        lambda said: tuple(line for line in said if line is not None)
    ),
    targeted=_mostly_none(
        "max-age=20",
        "public, max-age=10, stale-while-revalidate=30",
        "no-store",
        "s-maxage=20;x",
        "MAX-AGE=20",
        'max-age="20"',
        "",
        "max-age=1, max-age=30",
        "max-age=10, stale-if-error=60",
        nones=18,
    ),
    expires=_mostly_none(-10, 10, 60, 60, "0", "soon", nones=10),
    date=_mostly_none(0, 0, 0, -30, 30, nones=5),
    age=_mostly_none("3", "3, 50", "20", "x", "-1", "99999999999999", nones=14),
    vary=_mostly_none(
        *["Accept-Language", "accept-language"] * 3, "X-Kind", "x-kind, Accept-Language", "*", "authorization", nones=12
    ),
    etag=_mostly_none("strong", "strong", "strong", "weak", "weak", "broken", nones=3),
    modified=_mostly_none(0, -1, -100, -100, nones=4),
    cookie=_seldom,
    hop=_seldom,
    length=st.booleans(),
    chunks=st.sampled_from([1, 1, 1, 3]),
    parts=_seldom,
    short_304=st.booleans(),
    unsafe_status=st.sampled_from([200, 204, 303, 404, 500]),
    location=_mostly_none("/a", "/b", nones=2),
)


_good_plans = st.builds(
    Plan,
    cache_control=st.tuples(st.sampled_from(_common)),
    age=_mostly_none("3", nones=4),
    vary=_mostly_none("Accept-Language", nones=2),
    etag=_mostly_none("strong", "strong", "weak", nones=1),
    modified=_mostly_none(-100, nones=1),
    location=_mostly_none("/a", nones=1),
    short_304=st.booleans(),
)
_plans = st.sampled_from([_good_plans, _good_plans, _odd_plans]).flatmap(lambda plans: plans)


def _present(fields: dict[str, str | None]) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", "-"), value) for name, value in fields.items() if value is not None)


def _fields(**fields: st.SearchStrategy[str | None]) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.fixed_dictionaries(fields).map(_present)


_asks = st.builds(
    Ask,
    url=st.sampled_from([*["/a"] * 3, *URLS]),
    method=st.sampled_from(["GET"] * 12 + ["HEAD"] * 3 + ["POST", "PUT"]),
    headers=_fields(
        accept_language=_mostly_none("en", "de", nones=1),
        x_kind=_mostly_none("k", nones=7),
        authorization=_mostly_none("Bearer one", "Bearer two", nones=12),
        cookie=_mostly_none("id=1", nones=14),
        cache_control=_mostly_none(
            "no-cache",
            "no-store",
            "max-age=4",
            "max-age=0",
            "min-fresh=8",
            "max-stale",
            "max-stale=20",
            "max-age=30, max-stale=10",
            "only-if-cached",
            "only-if-cached",
            "max-stale=x",
            nones=22,
        ),
        pragma=_mostly_none("no-cache", nones=14),
        if_none_match=_mostly_none("*", '"other"', "broken", nones=24),
        if_modified_since=_mostly_none(formatdate(EPOCH, usegmt=True), formatdate(EPOCH + 90, usegmt=True), nones=9),
        range=_mostly_none(
            "bytes=0-3",
            "bytes=4-",
            "bytes=-5",
            "bytes=5-500",
            "bytes=400-",
            "bytes=-0",
            "bytes=0-1,3-4",
            "x=1",
            nones=8,
        ),
    ),
    known_tag=_mostly_none(0, 0, 1, 5, nones=8),
    if_range=_mostly_none(0, 1, 1, 2, nones=6),
)
_urls = st.sampled_from(["/a", *URLS])
_plain_asks = st.builds(
    Ask,
    url=st.sampled_from([*["/a"] * 4, *URLS]),
    method=st.just("GET"),
    headers=_fields(accept_language=_mostly_none("en", nones=1)),
    known_tag=_mostly_none(0, nones=5),
)
_kinds: dict[str, st.SearchStrategy[Step]] = {
    "ask": _asks,
    "ask plainly": _plain_asks,
    "plan": st.builds(Change, _urls, _plans),
    "change": st.builds(Change, _urls),
    "status": st.builds(Change, _urls, status=st.sampled_from([200, 200, 500, 503, 0])),
    "wait": st.builds(Wait, st.sampled_from([0.5, 1.0, 4.0, 6.0, 6.0, 11.0, 11.0, 30.0, 61.0])),
    "invalidate": st.builds(Invalidate, st.sampled_from(["a", "b", "all", "x"])),
}
_weights = {"ask": 8, "ask plainly": 10, "plan": 1, "change": 2, "status": 2, "wait": 4, "invalidate": 1}
_steps = st.sampled_from([kind for kind, weight in _weights.items() for _ in range(weight)]).flatmap(_kinds.__getitem__)
Sequence = tuple[tuple[Plan, ...], list[Step]]


def beginning_with(first: st.SearchStrategy[Plan]) -> st.SearchStrategy[Sequence]:
    """Sequences where the resource that is asked for most has such a plan, until it changes."""
    return st.tuples(st.tuples(first, _plans, _plans), st.lists(_steps, min_size=20, max_size=40))


sequences = beginning_with(_plans)


# --- the world it happens in


class World:
    """Three resources, the cache before them, and the oracle that sees all of what they say."""

    def __init__(self, plans: tuple[Plan, ...], store: rules.Store) -> None:
        self.clock = FakeClock()
        self._start = self.clock()
        self.cache = Cache(MemoryBackend(clock=self.clock))
        self.app = CacheMiddleware(self.origin, cache=self.cache, store=store)
        self.oracle = Oracle(declared_only=store == "declared")
        self.plans = dict(zip(URLS, plans, strict=True))
        self.versions = dict.fromkeys(URLS, 0)
        self.changed = dict.fromkeys(URLS, EPOCH)
        self.seen: dict[str, list[str]] = {url: [] for url in URLS}
        self.serial = 0
        self.kinds: Counter[str] = Counter()
        self._call: Call | None = None
        self._exchanges: list[Exchange] = []

    @property
    def now(self) -> float:
        return EPOCH + self.clock() - self._start

    # --- the application

    async def origin(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        url = scope["path"] + (f"?{query}" if query else "")
        asked, plan = self.now, self.plans[url]
        sent = Request(scope["method"], url, list(scope["headers"]))
        if plan.takes:
            self.clock.advance(plan.takes)
        add_tags(*TAGS[url])
        self.serial += 1
        answer = self._answer(sent, plan)
        exchange = Exchange(
            sent, answer, asked, self.now, frozenset(TAGS[url]), self._call is not None and scope is self._call.scope
        )
        self.oracle.exchanged(exchange)
        if exchange.for_client:
            self._exchanges.append(exchange)
        if answer.crashed:
            raise RuntimeError("the application failed")
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        body = b"" if sent.method == "HEAD" else answer.body
        size = max(1, -(-len(body) // plan.chunks))
        for at in range(0, max(1, len(body)), size):
            await send({"type": "http.response.body", "body": body[at : at + size], "more_body": at + size < len(body)})

    def _answer(self, sent: Request, plan: Plan) -> Answer:
        serial = (b"x-serial", b"%d" % self.serial)
        if sent.method not in ("GET", "HEAD"):
            if plan.unsafe_status < 400:
                self.change(sent.url)
            location = [(b"location", plan.location.encode())] if plan.location else []
            return Answer(plan.unsafe_status, [serial, *location], b"")
        if plan.status == 0:
            return Answer(crashed=True)
        headers = [serial, *self._fields_of(sent, plan)]
        body = b"" if plan.status == 204 else self._body(sent, plan)
        etag = next((value for name, value in headers if name == b"etag"), None)
        modified = next((value for name, value in headers if name == b"last-modified"), None)
        if plan.status == 200 and not_modified(sent, etag, modified):
            short = {b"x-serial", b"etag", b"last-modified", b"age", b"set-cookie"}
            headers = [one for one in headers if not plan.short_304 or one[0] in short]
            return Answer(304, self._confirming(headers, plan), b"")
        asked_range = sent.value(b"range")
        if plan.parts and plan.status == 200 and asked_range and sent.method == "GET" and not sent.lines(b"if-range"):
            span = span_of(asked_range, len(body))
            if not isinstance(span, str):
                content_range = b"bytes %d-%d/%d" % (span[0], span[1] - 1, len(body))
                return Answer(206, [*headers, (b"content-range", content_range)], body[span[0] : span[1]])
        if sent.method == "HEAD":
            headers = self._confirming(headers, plan)
        if plan.length and plan.status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        return Answer(plan.status, headers, body)

    def _confirming(self, headers: list[tuple[bytes, bytes]], plan: Plan) -> list[tuple[bytes, bytes]]:
        age = [(b"age", plan.confirmed_age.encode())] if plan.confirmed_age is not None else []
        return [*(one for one in headers if one[0] != b"age"), *age]

    def _body(self, sent: Request, plan: Plan) -> bytes:
        """Of the version, and of what the resource says that it varies by."""
        names = [name.strip().lower().encode() for name in (plan.vary or "").split(",")]
        by = b" ".join(b"%b=%b" % (name, sent.value(name) or b"-") for name in names if name and name != b"*")
        return b"%b version %d %b" % (sent.url.encode(), self.versions[sent.url], by)

    def _fields_of(self, sent: Request, plan: Plan) -> list[tuple[bytes, bytes]]:
        def date(seconds: float) -> str:
            return formatdate(int(seconds), usegmt=True)

        found: list[tuple[str, str | None]] = [("content-type", "text/plain")]
        found += [("cache-control", line) for line in plan.cache_control]
        found.append(("cdn-cache-control", plan.targeted))
        found.append(("expires", date(self.now + plan.expires) if isinstance(plan.expires, int) else plan.expires))
        found.append(("date", None if plan.date is None else date(self.now + plan.date)))
        found += [("age", plan.age), ("vary", plan.vary)]
        tag = self._body(sent, plan).hex()
        tags = {"strong": f'"{tag}"', "weak": f'W/"{tag}"', "broken": tag}
        found.append(("etag", tags.get(plan.etag or "")))
        found.append(("last-modified", None if plan.modified is None else date(self.changed[sent.url] + plan.modified)))
        if plan.cookie:
            found.append(("set-cookie", f"id={self.serial}"))
        if plan.hop:
            found += [("connection", "x-hop"), ("x-hop", "1")]
        return [(name.encode(), value.encode()) for name, value in found if value is not None]

    def change(self, url: str) -> None:
        self.versions[url] += 1
        self.changed[url] = self.now

    # --- the clients

    async def run(self, steps: list[Step]) -> None:
        async with self.cache:
            for step in steps:
                match step:
                    case Ask():
                        await self._ask(step)
                    case Change(url, plan, status):
                        plan = plan or self.plans[url]
                        self.plans[url] = plan if status is None else replace(plan, status=status)
                        self.change(url)
                    case Wait(seconds):
                        self.clock.advance(seconds)
                    case Invalidate(tag):
                        await self.cache.invalidate(tag)
                        self.oracle.invalidated(tag)
                        self.kinds["invalidated"] += 1

    async def _ask(self, step: Ask) -> None:
        headers, seen = list(step.headers), self.seen[step.url]
        if step.known_tag is not None and step.known_tag < len(seen):
            headers.append(("if-none-match", seen[-1 - step.known_tag]))
        if step.if_range is not None and step.if_range < len(seen):
            headers.append(("if-range", seen[-1 - step.if_range]))
        self._exchanges = []
        self._call = call = request(step.url, method=step.method, headers=headers)
        sent = Request(step.method, step.url, list(call.scope["headers"]))
        await call.run(self.app)
        exchanges, self._call = self._exchanges, None
        if call.error is not None and not call.messages:
            if not isinstance(call.error, RuntimeError):
                raise call.error
            answer = Answer(crashed=True)
        else:
            answer = Answer(call.status, call.start["headers"], call.body)
            for etag in call.all("etag"):
                if etag not in seen[-1:]:
                    seen.append(etag)
        verdict = self.oracle.judge(sent, answer, exchanges, self.now)
        if verdict.violations:
            raise ViolationError(f"{sent}\n{answer}\n{verdict.kind}:\n" + "\n".join(verdict.violations))
        self.kinds[verdict.kind] += 1
        for _ in range(300):  # renewals in the background
            if not self.cache._filling().flights._open:
                break
            await checkpoint()
        assert not self.cache._filling().flights._open


def play(plans: tuple[Plan, ...], steps: list[Step], store: rules.Store) -> Counter[str]:
    """Run a sequence; how its answers came about. Raises `ViolationError`."""
    world = World(plans, store)
    wall = SimpleNamespace(time=lambda: world.now)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exchange_module, "time", wall)
        patched.setattr(middleware_module, "time", wall)
        anyio.run(world.run, steps)
    return world.kinds


def explore(store: rules.Store, among: st.SearchStrategy[Sequence], examples: int) -> Counter[str]:
    """Play `examples` sequences, always the same; how all their answers came about."""
    kinds: Counter[str] = Counter()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(among)
    def played(sequence: Sequence) -> None:
        kinds.update(play(*sequence, store))

    played()
    return kinds


# --- what must hold


PAGE = Ask("/a", "GET", ())
PUBLIC = Plan(cache_control=("public, max-age=10",), etag="strong")
#: It may be served stale for five seconds, and for a minute instead of an error.
PERIODS = replace(PUBLIC, cache_control=("public, max-age=5, stale-while-revalidate=5, stale-if-error=60",))

#: How often each kind of answer has to come in the sequences of a run, at least: by a word of its name.
OFTEN = {
    "forwarded": 500,
    "validated": 10,
    "hit": 200,
    "stale": 10,
    "304": 20,
    "206": 2,
    "error": 1,
    "only-if-cached": 5,
}


@pytest.mark.parametrize("store", ["declared", "rfc9111"])
def test_whatever_is_served_is_what_the_rfcs_allow(store: rules.Store) -> None:
    """And a good part of it is served from what is stored."""
    kinds = explore(store, sequences, 70) + explore(store, beginning_with(st.just(PERIODS)), 30)
    counted = {word: sum(times for kind, times in kinds.items() if word in kind) for word in OFTEN}
    assert not {word: counted[word] for word, least in OFTEN.items() if counted[word] < least}, kinds


def test_every_way_to_be_served_comes_about() -> None:
    """Told step by step, so that what the random sequences hold is no accident."""
    steps: list[Step] = [
        PAGE,
        PAGE,
        replace(PAGE, method="HEAD"),
        replace(PAGE, method="HEAD"),
        replace(PAGE, known_tag=0),
        replace(PAGE, headers=(("range", "bytes=0-3"),)),
        replace(PAGE, headers=(("range", "bytes=400-"),)),
        Wait(11),
        PAGE,
        Change("/a", PERIODS),
        Invalidate("a"),
        PAGE,
        Wait(6),
        PAGE,
        Wait(20),
        Change("/a", replace(PERIODS, status=503)),
        PAGE,
        replace(PAGE, headers=(("cache-control", "only-if-cached"),)),
    ]
    kinds = play((PUBLIC, PUBLIC, PUBLIC), steps, "declared")
    assert kinds == {
        "forwarded": 3,
        "hit": 1,
        "hit: HEAD": 1,
        "hit: 304": 1,
        "hit: 206": 1,
        "hit: 416": 1,
        "validated": 1,
        "hit: stale": 1,
        "hit: instead of an error": 1,
        "only-if-cached": 1,
        "invalidated": 1,
    }


def test_4_2_3_what_took_long_to_come_is_that_old() -> None:
    """`Age` counts from when the request was sent."""
    plan = replace(PUBLIC, takes=5)
    play((plan, plan, plan), [PAGE, Wait(6), PAGE], "declared")


def test_4_2_3_what_is_confirmed_is_as_old_as_the_confirmation() -> None:
    """A 304 from a cache in between has an `Age`, too."""
    plan = replace(PUBLIC, confirmed_age="8")
    play((plan, plan, plan), [PAGE, Wait(11), PAGE, Wait(4), PAGE], "declared")


def test_3_2_what_a_304_does_not_speak_of_stays() -> None:
    """The application's `no-cache` for clients, beside its lifetime for this cache."""
    plan = replace(PUBLIC, cache_control=("no-cache",), targeted="max-age=10", expires=60, short_304=True)
    play((plan, plan, plan), [PAGE, Wait(11), PAGE], "declared")


# --- that a wrong rule is found


Break = Callable[[pytest.MonkeyPatch], None]


def _replaced(target: Any, name: str, make: Callable[[Any], Any]) -> Break:
    return lambda patched: patched.setattr(target, name, make(getattr(target, name)))


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda real: lambda *args, **more: value


def _reading(**changed: Any) -> Callable[[Any], Any]:
    """`parse_cache_control`, with directives that are overlooked."""

    def make(real: Callable[..., CacheControl]) -> Callable[..., CacheControl]:
        return lambda values: replace(real(values), **changed)

    return make


def _without_facts(**changed: Any) -> Callable[[Any], Any]:
    return lambda real: lambda request, *args, **more: real(replace(request, **changed), *args, **more)


def _all(*breaks: Break) -> Break:
    def together(patched: pytest.MonkeyPatch) -> None:
        for one in breaks:
            one(patched)

    return together


WRONG: dict[str, Break] = {
    "Age is ignored": _all(
        _replaced(rules, "parse_age", _always(None)), _replaced(exchange_module, "parse_age", _always(None))
    ),
    "Vary is ignored": _all(
        _replaced(rules, "parse_vary", _always(())), _replaced(variants, "parse_vary", _always(()))
    ),
    "what is private, no-store or sets a cookie is stored": _replaced(rules, "_why_response_is_private", _always(None)),
    "s-maxage is ignored for max-age": _replaced(rules, "parse_cache_control", _reading(s_maxage=None)),
    "private is overlooked": _replaced(rules, "parse_cache_control", _reading(private=False)),
    "no-cache is overlooked": _replaced(rules, "parse_cache_control", _reading(no_cache=False)),
    "targeted fields are ignored": _replaced(rules, "parse_targeted", _always(None)),
    "must-revalidate is ignored": _replaced(rules, "_must_revalidate", _always(False)),
    "stale for longer than was allowed": _replaced(
        rules, "_stale_periods", lambda real: lambda *args: tuple(one and one + 20 for one in real(*args))
    ),
    "unsafe methods invalidate nothing": _replaced(middleware_module, "is_safe", _always(True)),
    "Location is not invalidated": _replaced(changes, "changed_urls", _always([])),
    "Authorization is ignored": _all(
        *(
            _replaced(module, "why_bypass", _without_facts(authorization=False))
            for module in (rules, exchange_module, middleware_module)
        )
    ),
    "what the request asks for is ignored": _replaced(exchange_module, "may_serve", _always(True)),
    "what a 304 says is not taken over": _replaced(
        outgoing, "updated_by", lambda real: lambda response, headers: list(response.headers)
    ),
    "If-None-Match always matches": _replaced(rules, "etag_matches", _always(True)),
    "If-Range always holds": _replaced(ranges, "if_range_holds", _always(True)),
    "a part is one byte short": _replaced(ranges, "parse_range", lambda real: lambda *args: _shorter(real(*args))),
}


def _shorter(part: Any) -> Any:
    return (part[0], max(part[0], part[1] - 1)) if isinstance(part, tuple) else part


#: What the first resource says, where few do that the broken rule is about.
SAYS = {
    "s-maxage is ignored for max-age": Plan(cache_control=("public, max-age=60, s-maxage=5",)),
    "private is overlooked": Plan(cache_control=("private, max-age=60",)),
    "no-cache is overlooked": Plan(cache_control=("no-cache, max-age=60",)),
    "what is private, no-store or sets a cookie is stored": replace(PUBLIC, cookie=True),
    "targeted fields are ignored": replace(PUBLIC, targeted="no-store"),
    "must-revalidate is ignored": Plan(
        cache_control=("public, max-age=5, must-revalidate, stale-while-revalidate=60",)
    ),
    "stale for longer than was allowed": Plan(cache_control=("public, max-age=5, stale-while-revalidate=5",)),
    "Location is not invalidated": replace(PUBLIC, location="/b"),
    "Authorization is ignored": Plan(cache_control=("max-age=60",)),
    "If-Range always holds": PUBLIC,
    "a part is one byte short": PUBLIC,
}


@pytest.mark.parametrize("broken", WRONG)
def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """By sequences in which nothing is found wrong with the rule as it is."""
    says = SAYS.get(broken)
    among = sequences if says is None else beginning_with(st.just(says))
    with monkeypatch.context() as patched:
        WRONG[broken](patched)
        with pytest.raises(ViolationError):
            explore("rfc9111", among, 200)
    explore("rfc9111", among, 3)
