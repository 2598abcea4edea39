"""A FastAPI route under fastapi-cache2's decorator, which keeps JSON; FastAPI makes it again of what that holds."""

from typing import Any

from fastapi import FastAPI
from fastapi_cache import FastAPICache  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.backends.inmemory import InMemoryBackend  # type: ignore[import-not-found, unused-ignore]
from fastapi_cache.decorator import cache  # type: ignore[import-not-found, unused-ignore]

from benchmarks.servers import body
from benchmarks.workers.payloads import PRODUCT

FastAPICache.init(InMemoryBackend(), prefix="bench")


async def read(product_id: int) -> dict[str, Any]:
    body.compute()
    return PRODUCT


app = FastAPI()
app.get("/products/{product_id}", response_model=None)(cache(expire=3600)(read))


@app.get("/computed")
async def computed() -> int:
    return body.computed
