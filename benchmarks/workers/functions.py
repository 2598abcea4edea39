"""The functions that every library caches. A call makes a new value, as one that reads a database does."""

import asyncio
import copy
from typing import Any

from benchmarks.workers.payloads import PRODUCT, RECORD, TEXT, VALUES, Product, Record, prose

computed = 0
"""How often `slow` has run."""

written: dict[int, int] = {}
"""A database of versions by id, for `version`."""

read = 0
"""How often `page` and `sized` have run."""

texts: list[str] = []
"""What `stored` gives, by id: made before memory is measured, so that only what the library adds is counted."""


async def text(product_id: int) -> str:
    return TEXT


async def record(product_id: int) -> dict[str, Any]:
    return RECORD.copy()


async def product(product_id: int) -> dict[str, Any]:
    return copy.deepcopy(PRODUCT)


async def record_model(product_id: int) -> Record:
    model: Record = VALUES["model"]
    return model.model_copy(deep=True)


async def product_model(product_id: int) -> Product:
    model: Product = VALUES["nested model"]
    return model.model_copy(deep=True)


async def item(item_id: int, group_id: int) -> str:
    return "item"


async def stored(item_id: int, group_id: int) -> str:
    return texts[item_id]


async def page(page_id: int) -> str:
    global read
    read += 1
    return TEXT


async def sized(number: int) -> str:
    """The length of the text is `number` without its last three digits, which tell texts of one length apart."""
    global read
    read += 1
    return prose(number // 1_000)


async def slow(item_id: int) -> str:
    global computed
    computed += 1
    await asyncio.sleep(0.005)
    return "slow"


async def version(item_id: int) -> int:
    found = written[item_id]
    for _ in range(found % 4):  # the rest of the page, after the data has been read
        await asyncio.sleep(0)
    return found


BY_PAYLOAD: dict[str, Any] = {
    "str": text,
    "dict": record,
    "nested dict": product,
    "model": record_model,
    "nested model": product_model,
}
