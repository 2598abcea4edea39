"""A FastAPI route under fastapi-cache2's decorator, which keeps bytes; FastAPI makes JSON again of what they hold."""

from fastapi import FastAPI
from fastapi_cache import FastAPICache  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.backends.inmemory import InMemoryBackend  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.coder import PickleCoder  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.decorator import cache  # type: ignore[import-not-found, unused-ignore]

from benchmarks.servers import body
from benchmarks.workers.payloads import Product

FastAPICache.init(InMemoryBackend(), prefix="bench", coder=PickleCoder)


async def read(product_id: int) -> Product:
    return body.compute()


app = FastAPI()
app.get("/products/{product_id}", response_model=Product)(cache(expire=3600)(read))


@app.get("/computed")
async def computed() -> int:
    return body.computed
