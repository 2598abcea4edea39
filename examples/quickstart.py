"""The README's example: `uvicorn quickstart:app`, then `curl -i http://127.0.0.1:8000/page`, twice."""

from dataclasses import dataclass

from fastapi import FastAPI

from asynctag import Cache, add_tags
from asynctag.http import CacheMiddleware, cache_response
from asynctag.integrations.fastapi import CacheDep


@dataclass(frozen=True)
class Product:
    name: str
    price: int


SHOP = {1: Product("Kettle", 40), 2: Product("Toaster", 30)}  # stands for a database

cache = Cache()
app = FastAPI()
app.add_middleware(CacheMiddleware, cache=cache)


@cache.cached(ttl=300, tags=["product:{product_id}"])
async def product(product_id: int) -> Product:
    return SHOP[product_id]


@app.get("/page")
@cache_response(ttl=300, public=True)
async def page() -> list[Product]:
    add_tags("products")  # which products there are; their own tags come with them
    return [await product(product_id) for product_id in SHOP]


@app.put("/products/{product_id}")
async def update(product_id: int, body: Product, tagged: CacheDep) -> None:
    is_new = product_id not in SHOP
    SHOP[product_id] = body
    await tagged.invalidate(f"product:{product_id}", *(["products"] if is_new else []))
