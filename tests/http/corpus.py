"""Every way to say who is asking, on every kind of route, with every kind of response: who is served whose page."""

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import anyio
import itsdangerous
from fastapi import FastAPI
from fastapi.params import Depends, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asynctag import Cache, ConfigurationError
from asynctag.http import CacheMiddleware, cache_response
from asynctag.http.rules import Store
from tests.http.driver import Call, request

NOBODY = "nobody"
USERS = ("alice", "bob", NOBODY)
SECRET = "of the corpus"


# --- who is asking --------------------------------------------------------------------------------------


def _session_of(user: str) -> str:
    """The cookie that Starlette's `SessionMiddleware` would have set."""
    return itsdangerous.TimestampSigner(SECRET).sign(b64encode(json.dumps({"user": user}).encode())).decode()


def _no_scheme(request: Request) -> None:
    """A dependency that reads `Request` itself, as all have to for which FastAPI has no scheme."""
    assert request.client is not None


@dataclass(frozen=True)
class Carrier:
    """What of a request tells who is asking, and how the application finds out.

    `header` and `cookie` are what `vary=` and `cookies=` may name, `scheme` is what FastAPI knows of it.
    """

    name: str
    who: Callable[[Request], str | None]
    scheme: Callable[..., Any] = _no_scheme
    header: str | None = None
    cookie: str | None = None
    sent: Callable[[str], dict[str, Any]] = lambda user: {}


def _by_header(name: str, scheme: Callable[..., Any]) -> Carrier:
    prefix = "Bearer " if name == "Authorization" else ""
    return Carrier(
        f"`{name}`",
        lambda request: request.headers.get(name, "").removeprefix(prefix) or None,
        scheme,
        name,
        sent=lambda user: {"headers": {name: prefix + user}},
    )


SESSIONS = {user: _session_of(user) for user in USERS}
CARRIERS = (
    Carrier("nothing", lambda request: None),
    _by_header("Authorization", HTTPBearer(auto_error=False)),
    _by_header("X-API-Key", APIKeyHeader(name="X-API-Key", auto_error=False)),
    _by_header("X-Forwarded-User", APIKeyHeader(name="X-Forwarded-User", auto_error=False)),
    Carrier(
        "`Cookie`",
        lambda request: request.cookies.get("user"),
        APIKeyCookie(name="user", auto_error=False),
        "Cookie",
        "user",
        lambda user: {"headers": {"cookie": f"user={user}"}},
    ),
    Carrier(
        "a session",
        lambda request: request.session.get("user"),
        APIKeyCookie(name="session", auto_error=False),
        "Cookie",
        "session",
        lambda user: {"headers": {"cookie": f"session={SESSIONS[user]}"}},
    ),
    Carrier(
        "the client's address",
        lambda request: {"10.0.0.1": "alice", "10.0.0.2": "bob"}.get(request.client.host if request.client else ""),
        sent=lambda user: {"client": ("10.0.0.1" if user == "alice" else "10.0.0.2", 1)},
    ),
)


# --- what the response says -----------------------------------------------------------------------------

CACHE_CONTROL = (
    None,
    "max-age=60",
    "public, max-age=60",
    "s-maxage=60",
    "private, max-age=60",
    "no-store",
    "no-cache, max-age=60",
    "max-age=60, must-revalidate",
    "public, max-age=60, must-revalidate",
)
IDENTITY = "the header that tells who is asking"
VARY = (None, IDENTITY, "Cookie", "*")


@dataclass(frozen=True)
class Answer:
    """What a response says of itself."""

    cache_control: str | None
    set_cookie: bool
    vary: str | None

    def headers(self, carrier: Carrier) -> dict[str, str]:
        said: dict[str, str] = {}
        if self.cache_control is not None:
            said["cache-control"] = self.cache_control
        if self.set_cookie:
            said["set-cookie"] = "seen=1"
        if (vary := self.varies_by(carrier)) is not None:
            said["vary"] = vary
        return said

    def varies_by(self, carrier: Carrier) -> str | None:
        """The `Vary` it goes out with. Where no header tells who is asking, there is none to name."""
        return carrier.header if self.vary == IDENTITY else self.vary

    @property
    def directives(self) -> set[str]:
        return {part.partition("=")[0] for part in (self.cache_control or "").split(", ")} - {""}

    @property
    def for_one(self) -> bool:
        """Whether it says that it is for whom it was made for, and for nobody else."""
        return (
            self.set_cookie or self.vary == "*" or not self.directives.isdisjoint({"private", "no-store", "no-cache"})
        )

    @property
    def for_all(self) -> bool:
        """Whether it says that it is for everybody (RFC 9111 §5.2.2.9, §5.2.2.10)."""
        return not self.for_one and not self.directives.isdisjoint({"public", "s-maxage"})

    @property
    def has_lifetime(self) -> bool:
        return not self.directives.isdisjoint({"max-age", "s-maxage"})


ANSWERS = tuple(Answer(*one) for one in product(CACHE_CONTROL, (False, True), VARY))


# --- what the route says --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saying:
    """What stands over an endpoint."""

    name: str
    policy: Callable[[Carrier], dict[str, Any]] | None = None  # the arguments of cache_response
    scheme: str = ""  # how FastAPI's security scheme is declared: as a "parameter", or as a "guard"
    fits: Callable[[Carrier], bool] = field(default=lambda carrier: True)


UNDECORATED = Saying("nothing")
PLAIN = Saying("`cache_response`", lambda carrier: {})
PUBLIC = Saying("`public=True`", lambda carrier: {"public": True})
VARY_NAMES_IT = Saying(
    "`vary=` names it", lambda carrier: {"vary": [carrier.header]}, fits=lambda carrier: carrier.header is not None
)
COOKIES_NAMES_IT = Saying(
    "`cookies=` names it",
    lambda carrier: {"cookies": [carrier.cookie]},
    fits=lambda carrier: carrier.cookie is not None,
)
NO_COOKIES = Saying("`cookies=()`", lambda carrier: {"cookies": ()})
PARAMETER = Saying("a scheme as parameter", lambda carrier: {}, "parameter")
GUARD = Saying("a scheme in `dependencies=`", lambda carrier: {}, "guard")
PUBLIC_GUARD = Saying("a scheme and `public=True`", lambda carrier: {"public": True}, "guard")
SAYINGS = (
    UNDECORATED,
    PLAIN,
    PUBLIC,
    VARY_NAMES_IT,
    COOKIES_NAMES_IT,
    NO_COOKIES,
    PARAMETER,
    GUARD,
    PUBLIC_GUARD,
)
STORES: tuple[Store, ...] = ("declared", "rfc9111")


@dataclass(frozen=True)
class Place:
    """An application: how users tell who they are, what its one route says, and what its middleware stores."""

    carrier: Carrier
    saying: Saying
    store: Store

    def __str__(self) -> str:
        return f"{self.carrier.name}; {self.saying.name}; {self.store}"

    def app(self, cache: Cache, *, slow: bool = False) -> Any:
        """Its page `/n` says what the n-th of `ANSWERS` does, and names the user that it was made for.

        A slow one lets the others go on, so that requests that are made at once meet in it.
        """

        async def page_for(request: Request) -> PlainTextResponse:
            for _ in range(5 if slow else 0):
                await anyio.lowlevel.checkpoint()
            answer = ANSWERS[int(request.path_params["n"])]
            return PlainTextResponse(self.carrier.who(request) or NOBODY, headers=answer.headers(self.carrier))

        app: Starlette
        if self.saying.scheme == "parameter":
            key = Depends(self.carrier.scheme)

            async def keyed_page(request: Request, n: int, key: Any = key) -> PlainTextResponse:
                return await page_for(request)

            app = FastAPI(openapi_url=None)
            app.get("/{n}")(self._decorated(keyed_page))
        else:

            async def page(request: Request) -> PlainTextResponse:
                return await page_for(request)

            if self.saying.scheme == "guard":
                app = FastAPI(openapi_url=None)
                app.get("/{n}", dependencies=[Security(self.carrier.scheme)])(self._decorated(page))
            else:
                app = Starlette(routes=[Route("/{n}", self._decorated(page))])
        app.add_middleware(CacheMiddleware, cache=cache, store=self.store)
        if self.carrier.cookie == "session":
            app.add_middleware(SessionMiddleware, secret_key=SECRET)
        return app

    def _decorated(self, endpoint: Any) -> Any:
        policy = self.saying.policy
        return endpoint if policy is None else cache_response(60, **policy(self.carrier))(endpoint)


PLACES = tuple(
    Place(carrier, saying, store)
    for carrier, saying, store in product(CARRIERS, SAYINGS, STORES)
    if saying.fits(carrier)
)


# --- what happens ---------------------------------------------------------------------------------------

#: Who asks, one after the other, each line at a host of its own.
ORDERS = (("alice", "alice", "bob", NOBODY, NOBODY), (NOBODY, "bob"))

#: The stores, each with the event loop on which its half of the corpus runs: the rules know nothing of loops.
HALVES: tuple[tuple[Store, str], ...] = (("declared", "asyncio"), ("rfc9111", "trio"))


@dataclass(frozen=True)
class Served:
    """What one request got."""

    user: str
    page_of: str
    hit: bool
    first: bool  # of this user, at this URL


def request_of(user: str, carrier: Carrier, path: str, *, host: str) -> Call:
    """The request of a user; one of nobody says nothing of who is asking."""
    return request(path, host=host, **({} if user == NOBODY else carrier.sent(user)))


async def serve(app: Any, carrier: Carrier, number: int) -> list[Served] | None:
    """What the users got of a page, or `None` where the application refused to serve it in this way."""
    served: list[Served] = []
    for which, order in enumerate(ORDERS):
        asked: set[str] = set()
        for user in order:
            call = await request_of(user, carrier, f"/{number}", host=f"order{which}").run(app)
            if isinstance(call.error, ConfigurationError):
                return None
            assert call.error is None
            assert call.status == 200
            served.append(Served(user, call.text, call.hit, user not in asked))
            asked.add(user)
    return served


#: What may happen, as the docs name it.
REFUSED, NOT_STORED, BYPASS, ONE_EACH, SHARED = "refused", "not stored", "bypass", "one each", "shared"


def outcome_of(served: list[Served] | None) -> str:
    """What happened to a page, in one word."""
    if served is None:
        return REFUSED
    if any(one.hit and one.first for one in served):  # it was made for somebody else
        return SHARED
    if any(one.hit for one in served if one.user != NOBODY):
        return ONE_EACH
    return BYPASS if any(one.hit for one in served) else NOT_STORED


Seen = dict[tuple[Place, Answer], list[Served] | None]


async def observe(store: Store) -> Seen:
    """What happens in every cell of that half of the corpus."""
    seen: Seen = {}
    for place in PLACES:
        if place.store == store:
            app = place.app(Cache())
            for number, answer in enumerate(ANSWERS):
                seen[place, answer] = await serve(app, place.carrier, number)
    return seen


async def observe_at_once(store: Store) -> Seen:
    """What users get who ask at the same time, where answers set no cookie and vary by who is asking, if at all."""
    seen: Seen = {}
    for place in PLACES:
        if place.store != store:
            continue
        app = place.app(Cache(), slow=True)
        for number, answer in enumerate(ANSWERS):
            if answer.set_cookie or answer.vary not in (None, IDENTITY):
                continue
            users = ("alice", NOBODY, "bob", "alice", "bob", NOBODY)
            calls = [request_of(user, place.carrier, f"/{number}", host="shop") for user in users]
            async with anyio.create_task_group() as tasks:
                for call in calls:
                    tasks.start_soon(call.run, app)
            refused = any(isinstance(call.error, ConfigurationError) for call in calls)
            answered = zip(users, () if refused else calls, strict=False)
            seen[place, answer] = [Served(user, call.text, call.hit, first=True) for user, call in answered]
    return seen
