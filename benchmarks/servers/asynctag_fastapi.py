"""FastAPI under asynctag's middleware, which answers hits before routing."""

from fastapi import FastAPI

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers import body
from benchmarks.workers.payloads import Product

app = FastAPI()
app.add_middleware(CacheMiddleware, cache=Cache())


@app.get("/products/{product_id}")
@cache_response(ttl=3600, tags=["product:{product_id}"], public=True)
async def read(product_id: int) -> Product:
    return body.compute()


@app.get("/computed")
async def computed() -> int:
    return body.computed
