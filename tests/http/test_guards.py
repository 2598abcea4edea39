"""A route that guards itself is never answered before its guards have run."""

from functools import partial, wraps
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer, OAuth2PasswordBearer, SecurityScopes
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Route
from starlette.types import Message

from asynctag.http.guards import effective_route, why_not_public

bearer = HTTPBearer()


async def served(app: FastAPI, path: str = "/x", headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    """The scope as the middleware finds it once the application has answered."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "query_string": b"", "root_path": ""}
    scope |= {"headers": headers or [], "http_version": "1.1", "scheme": "http", "server": ("h", 80), "state": {}}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    await app(scope, receive, send)
    return scope


def route_of(endpoint: Any, **options: Any) -> object:
    app = FastAPI()
    app.get("/x", **options)(endpoint)
    return app.routes[-1]


def why(endpoint: Any, vary: tuple[str, ...] = (), cookies: tuple[str, ...] | None = None, **options: Any) -> str:
    return why_not_public(route_of(endpoint, **options), vary=vary, cookies=cookies) or ""


def plain(page: int = 1) -> int:
    return page


def user(credentials: Annotated[Any, Depends(bearer)]) -> None: ...


def team(of: Annotated[Any, Depends(user)]) -> None: ...


def test_a_route_without_guards_may_be_public() -> None:
    assert why(plain) == ""
    assert why(plain, dependencies=[Depends(plain)]) == ""


def test_a_starlette_route_cannot_be_judged() -> None:
    assert why_not_public(Route("/x", lambda request: PlainTextResponse("")), vary=()) is None


def scheme_as_parameter(credentials: Annotated[Any, Depends(bearer)]) -> None: ...


def scheme_as_default(credentials: Any = Depends(bearer)) -> None: ...  # noqa: B008


def scheme_nested(of: Annotated[Any, Depends(team)]) -> None: ...


def scheme_by_security(of: Annotated[Any, Security(OAuth2PasswordBearer("/token"), scopes=["a"])]) -> None: ...


def scheme_of_a_cookie(of: Annotated[Any, Depends(APIKeyCookie(name="session"))]) -> None: ...


def scheme_as_method(of: Annotated[Any, Depends(bearer.__call__)]) -> None: ...


def scheme_as_partial(of: Annotated[Any, Depends(partial(bearer))]) -> None: ...


class OwnScheme(HTTPBearer):
    pass


def scheme_of_a_subclass(of: Annotated[Any, Depends(OwnScheme())]) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        (scheme_as_parameter, "HTTPBearer"),
        (scheme_as_default, "HTTPBearer"),
        (scheme_nested, "team > user"),
        (scheme_by_security, "'of' of scheme_by_security"),
        (scheme_of_a_cookie, "APIKeyCookie"),
        (scheme_as_method, "HTTPBearer"),
        (scheme_as_partial, "HTTPBearer"),
        (scheme_of_a_subclass, "OwnScheme"),
    ],
)
def test_a_security_scheme_is_a_guard_wherever_it_stands(endpoint: Any, named: str) -> None:
    reason = why(endpoint, vary=("authorization", "cookie"))
    assert "security" in reason.lower()
    assert named in reason


def test_a_wrapped_scheme_is_seen_through() -> None:
    def timed(request: Request) -> None: ...

    timed.__wrapped__ = bearer  # type: ignore[attr-defined]

    def endpoint(of: Annotated[Any, Depends(timed)]) -> None: ...

    assert "HTTPBearer" in why(endpoint)


def by_hand(request: Request) -> None: ...


def security_without_a_scheme(of: Annotated[Any, Security(by_hand)]) -> None: ...


def security_by_default(of: Any = Security(by_hand)) -> None: ...  # noqa: B008


def scoped(of: Annotated[Any, Security(by_hand, scopes=["admin"])]) -> None: ...


def asks_for_scopes(scopes: SecurityScopes) -> None: ...


def scopes_below(of: Annotated[Any, Depends(asks_for_scopes)]) -> None: ...


@pytest.mark.parametrize("endpoint", [security_without_a_scheme, security_by_default, scoped, scopes_below])
def test_what_is_declared_as_security_is_a_guard_without_a_scheme(endpoint: Any) -> None:
    assert why(endpoint) != ""


def test_dependencies_of_the_route_are_guards() -> None:
    assert "HTTPBearer" in why(plain, dependencies=[Depends(bearer)])
    assert "by_hand" in why(plain, dependencies=[Security(by_hand)])


def test_dependencies_of_the_application_are_guards() -> None:
    app = FastAPI(dependencies=[Depends(bearer)])
    app.get("/x")(plain)
    assert "HTTPBearer" in (why_not_public(app.routes[-1], vary=()) or "")


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["router", "include", "outer include", "app"])
async def test_dependencies_of_every_router_on_the_way_are_guards(where: str) -> None:
    def declared(place: str) -> list[Any]:
        return [Depends(HTTPBearer(auto_error=False))] if place == where else []

    router = APIRouter(dependencies=declared("router"))
    router.get("/x")(plain)
    outer = APIRouter()
    outer.include_router(router, dependencies=declared("include"))
    app = FastAPI(dependencies=declared("app"))
    app.include_router(outer, dependencies=declared("outer include"))
    scope = await served(app)
    assert scope["endpoint"] is plain
    assert "HTTPBearer" in (why_not_public(effective_route(scope), vary=()) or "")


@pytest.mark.anyio
async def test_one_route_included_twice_is_judged_by_the_way_it_was_reached() -> None:
    router = APIRouter()
    router.get("/x")(plain)
    app = FastAPI()
    app.include_router(router, prefix="/open")
    app.include_router(router, prefix="/closed", dependencies=[Depends(HTTPBearer(auto_error=False))])
    assert why_not_public(effective_route(await served(app, "/open/x")), vary=()) is None
    assert why_not_public(effective_route(await served(app, "/closed/x")), vary=()) is not None


def test_a_context_that_another_routing_left_is_not_taken_for_the_routes() -> None:
    outer, inner = object(), object()
    scope = {"route": inner, "fastapi": {"effective_route_context": SimpleNamespace(original_route=outer)}}
    assert effective_route(scope) is inner


@pytest.mark.anyio
async def test_a_mounted_application_is_judged_by_its_own_routes() -> None:
    inner, app, router = FastAPI(), FastAPI(), APIRouter()
    router.get("/x")(scheme_as_parameter)
    inner.include_router(router)
    app.mount("/in", inner)
    assert why_not_public(effective_route(await served(app, "/in/x")), vary=()) is not None


def test_a_route_of_plain_starlette_is_found() -> None:
    app = Starlette(routes=[Route("/x", lambda request: PlainTextResponse(""))])
    assert effective_route({"route": app.routes[0]}) is app.routes[0]
    assert effective_route({}) is None
    assert app.routes[0].matches({"type": "http", "method": "GET", "path": "/x"})[0] is Match.FULL


# --- headers and cookies


def header(accept_language: Annotated[str | None, Header()] = None) -> None: ...


def header_by_default(accept_language: str = Header("de")) -> None: ...


def header_alias(value: Annotated[str, Header(alias="X-Tenant")]) -> None: ...


def header_with_underscore(x_y: Annotated[str, Header(convert_underscores=False)]) -> None: ...


def header_choices(v: Annotated[str, Header(validation_alias=AliasChoices("x-a", "x-b"))]) -> None: ...


def header_list(x_a: Annotated[list[str] | None, Header()] = None) -> None: ...


def header_below(of: Annotated[Any, Depends(header)]) -> None: ...


class Common(BaseModel):
    save_data: bool | None = None
    tenant: str | None = Field(default=None, alias="X-Tenant")


def header_model(common: Annotated[Common, Header()]) -> None: ...


def header_model_or_none(common: Annotated[Common | None, Header()] = None) -> None: ...


class Everything(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: str = ""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: str = ""


def header_model_of_everything(common: Annotated[Everything, Header()]) -> None: ...


def cookie_model_of_everything(common: Annotated[Strict, Cookie()]) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "names"),
    [
        (header, ["accept-language"]),
        (header_by_default, ["Accept-Language"]),
        (header_alias, ["x-tenant"]),
        (header_with_underscore, ["x_y"]),
        (header_choices, ["v", "x-a", "X-B"]),
        (header_list, ["x-a"]),
        (header_below, ["accept-language"]),
        (header_model, ["save-data", "x-tenant"]),
        (header_model_or_none, ["save-data", "x-tenant"]),
    ],
)
def test_a_header_parameter_must_be_in_vary(endpoint: Any, names: list[str]) -> None:
    assert why(endpoint, vary=tuple(names)) == ""
    for missing in names:
        reason = why(endpoint, vary=tuple(name for name in names if name != missing))
        assert missing.lower() in reason.lower()


def test_where_the_parameter_stands_is_said() -> None:
    assert "header" in why(header_below)
    assert "the endpoint" in why(header)


def cookie(theme: Annotated[str | None, Cookie()] = None) -> None: ...


def cookie_alias(theme: Annotated[str | None, Cookie(alias="Th_eme")] = None) -> None: ...


class Cookies(BaseModel):
    theme: str | None = None
    lang_code: str | None = None


def cookie_model(cookies: Annotated[Cookies, Cookie()]) -> None: ...


def test_a_cookie_parameter_must_be_in_cookies_or_the_whole_header_in_vary() -> None:
    for endpoint, names in (
        (cookie, ("theme",)),
        (cookie_alias, ("Th_eme",)),
        (cookie_model, ("theme", "lang_code")),
    ):
        assert names[-1] in why(endpoint, cookies=names[:-1])
        assert why(endpoint, vary=names) != ""
        assert why(endpoint, cookies=names) == ""
        assert why(endpoint, vary=("Cookie",)) == ""


def test_a_model_that_reads_every_name_is_a_guard() -> None:
    assert "Everything" in why(header_model_of_everything, vary=("a",))
    assert "Strict" in why(cookie_model_of_everything, cookies=("a",))


def test_a_wrapped_endpoint_is_seen_through() -> None:
    @wraps(header)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        header(*args, **kwargs)

    assert "accept-language" in why(wrapped)


# --- shapes that are not known


def tree(**changes: Any) -> SimpleNamespace:
    shape: dict[str, Any] = {"dependencies": [], "header_params": [], "cookie_params": [], "call": plain}
    return SimpleNamespace(**{name: value for name, value in (shape | changes).items() if value is not ...})


@pytest.mark.parametrize(
    "dependant",
    [
        None,
        SimpleNamespace(),
        tree(dependencies=...),
        tree(header_params=...),
        tree(cookie_params=...),
        tree(call=...),
        tree(call=None),
        tree(dependencies=None),
        tree(dependencies=[None]),
        tree(header_params=[object()]),
        tree(header_params=[SimpleNamespace(field_info=None, alias=1, name="a")]),
    ],
)
def test_what_cannot_be_read_counts_as_a_guard(dependant: object) -> None:
    assert "cannot be read" in (why_not_public(SimpleNamespace(dependant=dependant), vary=()) or "")


def test_a_known_shape_without_guards_passes() -> None:
    assert why_not_public(SimpleNamespace(dependant=tree()), vary=()) is None


def test_older_lists_of_security_requirements_are_guards() -> None:
    assert why_not_public(SimpleNamespace(dependant=tree(security_requirements=[object()])), vary=()) is not None
