"""A FastAPI route under cashews' decorator, which keeps a dict; FastAPI makes JSON of it for each request."""

from typing import Any

from cashews import cache  # type: ignore[import-not-found, unused-ignore]
from fastapi import FastAPI

from benchmarks.servers import body
from benchmarks.workers.payloads import PRODUCT

cache.setup("mem://", check_interval=10)


async def read(product_id: int) -> dict[str, Any]:
    body.compute()
    return PRODUCT


app = FastAPI()
app.get("/products/{product_id}", response_model=None)(
    cache(ttl=3600, key="product:{product_id}", tags=["product:{product_id}"], protected=False)(read)
)


@app.get("/computed")
async def computed() -> int:
    return body.computed
