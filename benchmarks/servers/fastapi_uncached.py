"""A FastAPI route whose model FastAPI makes JSON of, for each request."""

from fastapi import FastAPI

from benchmarks.servers.body import compute
from benchmarks.workers.payloads import Product

app = FastAPI()


@app.get("/products/{product_id}")
async def read(product_id: int) -> Product:
    return compute()
