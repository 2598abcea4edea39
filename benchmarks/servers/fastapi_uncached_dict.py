"""A FastAPI route without a model, whose dict FastAPI makes JSON of, for each request."""

from typing import Any

from fastapi import FastAPI

from benchmarks.workers.payloads import PRODUCT

app = FastAPI()


@app.get("/products/{product_id}", response_model=None)
async def read(product_id: int) -> dict[str, Any]:
    return PRODUCT
