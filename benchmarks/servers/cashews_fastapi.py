"""A FastAPI route under cashews' decorator, which keeps the model; FastAPI makes JSON of it for each request."""

from cashews import cache  # type: ignore[import-not-found, unused-ignore]
from fastapi import FastAPI

from benchmarks.servers import body
from benchmarks.workers.payloads import Product

cache.setup("mem://", check_interval=10)


async def read(product_id: int) -> Product:
    return body.compute()


app = FastAPI()
app.get("/products/{product_id}", response_model=Product)(
    cache(ttl=3600, key="product:{product_id}", tags=["product:{product_id}"], protected=False)(read)
)


@app.get("/computed")
async def computed() -> int:
    return body.computed
