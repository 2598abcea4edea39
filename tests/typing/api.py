"""The types of the API as a user meets them. Checked by mypy (strict) and pyright; never run."""

from collections.abc import Coroutine
from datetime import timedelta
from typing import Annotated, Any, Literal, assert_type

from fastapi import Depends, FastAPI, Header
from jinja2 import Environment
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request
from starlette.templating import Jinja2Templates

from asynctag import Cache, Cached, Explanation, Held, Hit, Miss, Wait, WhileLeased, Window, add_tags, no_store, tag
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, RequestCache, current_request
from asynctag.integrations.fastapi import CacheDep, cache_response
from asynctag.integrations.jinja2 import CacheExtension, install
from asynctag.integrations.outbox import Outbox
from asynctag.integrations.sqlalchemy import UnitsOfWork, row_tags, unit_of_work
from asynctag.testing import BackendContract, FakeClock, assert_hit, assert_miss, assert_tags

cache = Cache(MemoryBackend(clock=FakeClock()), namespace="shop", default_ttl=timedelta(minutes=5))


class Product:
    name: str


# --- functions keep their signature


@cache.cached(ttl=60, tags=["product:{product_id}"])
async def product(product_id: int, *, region: str = "north") -> Product:
    add_tags(tag(region=region))
    no_store()
    return Product()


@cache.cached
async def plain(n: int) -> list[str]:
    return []


@cache.cached(tags=lambda ids: [f"product:{one}" for one in ids], key=lambda ids: sorted(ids), exclude={"trace"})
async def by_functions(ids: list[int], trace: object = None) -> dict[int, Product]:
    return {}


async def patient(held: Held) -> Literal["bypass", "serve_stale"]:
    return "serve_stale" if await held.released(0.5) else "bypass"


class Choosy:
    async def __call__(self, held: Held, /) -> Literal["bypass", "serve_stale"]:
        return "bypass" if held.tag.endswith("price") else "serve_stale"


behaviours: list[WhileLeased] = [patient, Choosy(), Wait(timedelta(seconds=2), then="serve_stale")]
by_name = Cache(while_leased="serve_stale")
by_function = Cache(while_leased=patient)


@cache.cached(ttl=60, while_leased=Wait(0.5))
async def waited_for(n: int) -> int:
    return n


def tags_of(product_id: int) -> list[str]:
    return [f"product:{product_id}"]


@cache.cached(tags=tags_of, ttl=timedelta(days=1), name="annotated", version=2, returns=Product, jitter=0.1)
async def annotated(product_id: int) -> Product | None:
    return None


async def functions() -> None:
    assert_type(await product(635), Product)
    assert_type(await product(635, region="south"), Product)
    _ = assert_type(product(635), Coroutine[Any, Any, Product])
    assert_type(product.key(635), str)
    assert_type(await product.invalidate(635, region="south"), None)
    assert_type(await product.invalidate_all(), None)
    assert_type(product.sync.invalidate(635, region="south"), None)
    assert_type(product.sync.invalidate_all(), None)
    assert_type(await product.refresh(635), Product)
    assert_type(await product.uncached(635), Product)
    assert_type(await product.explain(635), Explanation)
    assert_type(product.__name__, str)
    assert_type(await plain(1), list[str])
    assert_type(await by_functions([1]), dict[int, Product])
    assert_type(await annotated(1), Product | None)

    await product("635")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await product(635, "south")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await product.invalidate()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await product.refresh(region=1)  # type: ignore[call-arg, arg-type] # pyright: ignore
    product.key(n=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    product.sync.invalidate()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def takes_a_cached(function: Cached[[int], list[str]]) -> None: ...


takes_a_cached(plain)
takes_a_cached(product)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def not_async(n: int) -> int:
    return n


cache.cached(not_async)  # type: ignore[arg-type] # pyright: ignore
cache.cached(ttl="60")  # type: ignore[call-overload] # pyright: ignore


# --- methods bind their object


class Repository:
    def __cache_key__(self) -> str:
        return "repository"

    @cache.cached(ttl=60)
    async def method(self, n: int, *, deep: bool = False) -> Product:
        return Product()

    @cache.cached
    async def without_brackets(self) -> int:
        return 1

    async def uses_its_own(self) -> None:
        assert_type(await self.method(1), Product)
        assert_type(await self.method.refresh(1, deep=True), Product)


async def methods(repository: Repository) -> None:
    assert_type(await repository.method(1), Product)
    assert_type(await repository.method(1, deep=True), Product)
    _ = assert_type(repository.method(1), Coroutine[Any, Any, Product])
    assert_type(repository.method.key(1), str)
    assert_type(await repository.method.invalidate(1), None)
    assert_type(await repository.method.invalidate_all(), None)
    assert_type(repository.method.sync.invalidate(1), None)
    assert_type(await repository.method.refresh(1), Product)
    assert_type(await repository.method.uncached(1), Product)
    assert_type(await repository.method.explain(1), Explanation)
    assert_type(await repository.without_brackets(), int)
    assert_type(await Repository.method(repository, 1), Product)
    assert_type(await Repository.method.refresh(repository, 1), Product)
    assert_type(Repository.method.key(repository, 1), str)

    await repository.method("1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await repository.method.invalidate()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await repository.without_brackets(1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


# --- values by key


async def compute() -> Product:
    return Product()


async def build(keys: list[str]) -> dict[str, Product]:
    return {}


async def values() -> None:
    assert_type(await cache.get_or_set("k", compute), Product)
    assert_type(await cache.get_or_set("k", lambda: compute(), ttl=60, tags={"x"}, returns=Product), Product)
    assert_type(await cache.get_or_set_many(["k"], build, tags=lambda key: [key]), dict[str, Product])
    assert_type(await cache.get_or_set_many(["k"], build, tags=["x"]), dict[str, Product])

    found = await cache.lookup("k", returns=Product)
    assert_type(found, Hit | Miss)
    if isinstance(found, Hit):
        assert_type(found.tags, frozenset[str])
    assert_type(await cache.set("k", 1, since=found, ttl=1, tags=["x"]), bool)

    assert_type(await cache.get("k", returns=Product), Product | None)
    assert_type(await cache.get("k", 0, returns=Product), Product | int)
    assert_type(await cache.get("k", default="", returns=Product), Product | str)
    assert_type(await cache.get("k"), Any)
    assert_type(await cache.get("k", 1), Any)
    assert_type(await cache.get_many(["k"]), dict[str, Any])

    assert_type(await cache.delete("k"), bool)
    assert_type(await cache.invalidate("a", "b", soft=True, queue=True), bool)
    assert_type(await cache.clear(queue=True), bool)
    assert_type(cache.queued_invalidations, tuple[str, ...])
    assert_type(await cache.flush_invalidations(), bool)
    assert_type(cache.sync.invalidate("a", "b", soft=True, queue=True), bool)
    assert_type(cache.sync.delete("k"), None)
    assert_type(cache.sync.transaction()(not_async)(1), int)
    cache.sync.transaction(isolation="snapshot")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(await cache.explain("k"), Explanation)
    async with cache as opened:
        assert_type(opened, Cache)
    with cache.override(MemoryBackend()), cache.disabled():
        pass

    await cache.get_or_set("k", not_async)  # type: ignore[arg-type] # pyright: ignore
    await cache.invalidate(["a"])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await cache.set("k", 1, since=None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# --- transactions


@cache.transaction(isolation="SERIALIZABLE", replica_lag=8, during_lag="serve", lease=timedelta(minutes=1))
async def rename(product_id: int, name: str = "") -> Product:
    return Product()


async def caught_up() -> bool:
    return True


async def transactions() -> None:
    assert_type(await rename(1, name="Jug"), Product)
    async with cache.transaction(replica_lag=8, caught_up=caught_up) as transaction:
        transaction.drop_stores()
        assert_type(await cache.invalidate("a", replica_lag=timedelta(seconds=8)), bool)
    Cache(replica_lag=8, during_lag="bypass", caught_up=caught_up)
    await rename("1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    cache.transaction(isolation="snapshot")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    cache.transaction(during_lag="wait")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    cache.transaction()(not_async)  # type: ignore[arg-type] # pyright: ignore


# --- windows


@cache.window(timeout=timedelta(seconds=1), fallback="", name="badge")
async def badge(size: int, *, colour: str = "red") -> str:
    return colour * size


@cache.window
async def cart() -> dict[str, int]:
    return {"items": 1}


@cache.window(timeout=None)
@cache.cached(ttl=60)
async def stock(product_id: int) -> int:
    return 1


@cache.cached(ttl=60)
async def page() -> str:
    text: str = badge(2, colour="blue")
    return f"<p>{text}</p>" + badge(1) + ", ".join([badge(3), cart()])


@cache.cached(ttl=60)
async def data() -> dict[str, str | list[str]]:
    return {"badge": badge(1), "all": [cart(), stock(1)]}


async def windows() -> None:
    assert_type(await badge(1), str)
    assert_type(await cart(), dict[str, int])
    assert_type(await stock(1), int)
    window: Window[[], dict[str, int]] = cart
    assert_type(await window(), dict[str, int])
    badge("2")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    badge(1, "blue")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


cache.window(not_async)  # type: ignore[arg-type] # pyright: ignore
cache.window(timeout="1")  # type: ignore[call-overload] # pyright: ignore


# --- windows with FastAPI's dependencies, in its endpoints


class User:
    name: str


async def current_user(name: Annotated[str | None, Header()] = None) -> User | None:
    return User() if name else None


app = FastAPI()
app.add_middleware(CacheMiddleware, cache=cache)


@cache.window(timeout=1, fallback="")
async def greeting(word: str, user: User | None = Depends(current_user)) -> str:  # noqa: B008
    return f"{word}, {user.name if user is not None else 'you'}"


@cache.window
async def spoken(user: Annotated[User, Depends(current_user)], language: Annotated[str, Header()] = "en") -> list[str]:
    assert_type(current_request(), Request)
    return [user.name, language]


@app.get("/")
@cache_response(60, public=True, cookies=())
async def front(tagged: CacheDep, n: int = 1) -> str:
    assert_type(tagged, RequestCache)
    tagged.add_tags("front")
    return f"<header>{greeting('Hello')}</header>"


async def dependencies() -> None:
    assert_type(await greeting("Hello"), str)
    assert_type(await spoken(User()), list[str])
    assert_type(await front(RequestCache(cache, None), n=2), str)
    greeting()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    greeting(1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    spoken()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await front(n=2)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


# --- templates


def templates() -> None:
    assert_type(install(Jinja2Templates("templates").env, cache), None)
    assert_type(install(Environment(enable_async=True, autoescape=True), cache, name="mails"), None)
    Environment(extensions=[CacheExtension, "asynctag.integrations.jinja2.CacheExtension"])
    install(Jinja2Templates("templates"), cache)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    install(Environment(), cache, "mails")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    install(Environment())  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    install(Environment(), MemoryBackend())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# --- tools for tests


async def tools() -> None:
    assert_type(await assert_hit(product, 635), Explanation)
    assert_type(await assert_miss(cache, "k"), Explanation)
    assert_type(await assert_tags(Repository().method, 1, tags={"x"}), Explanation)


class Mine(BackendContract): ...


# --- sessions


async def sessions(session: AsyncSession) -> None:
    units = UnitsOfWork(cache, async_sessionmaker(), tag_reads=True, outbox=Outbox(MetaData()))
    async with units() as one, units.begin() as other, unit_of_work(cache, session, lease=5) as third:
        assert_type(one, AsyncSession)
        assert_type(other, AsyncSession)
        assert_type(third, AsyncSession)
    assert_type(row_tags(Product, 1), tuple[str, ...])


def sync_sessions(session: Session) -> None:
    with UnitsOfWork(cache, sessionmaker()).begin() as one, unit_of_work(cache, session) as other:
        assert_type(one, Session)
        assert_type(other, Session)
