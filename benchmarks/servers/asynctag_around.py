"""asynctag's middleware around a whole FastAPI application: a public hit where nothing else runs."""

from fastapi import FastAPI

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers import body
from benchmarks.workers.payloads import Product

application = FastAPI()


@application.get("/products/{product_id}")
@cache_response(ttl=3600, tags=["product:{product_id}"], public=True)
async def read(product_id: int) -> Product:
    return body.compute()


@application.get("/computed")
async def computed() -> int:
    return body.computed


app = CacheMiddleware(application, cache=Cache())
