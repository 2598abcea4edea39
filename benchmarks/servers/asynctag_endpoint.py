"""FastAPI under asynctag's middleware: not public, so hits are served at the endpoint, after the dependencies."""

from fastapi import FastAPI

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers import body
from benchmarks.workers.payloads import Product

app = FastAPI()
app.add_middleware(CacheMiddleware, cache=Cache())


@app.get("/products/{product_id}")
@cache_response(ttl=3600, tags=["product:{product_id}"])
async def read(product_id: int) -> Product:
    return body.compute()


@app.get("/computed")
async def computed() -> int:
    return body.computed
