"""What is cached: a kilobyte as text, as a flat record, as a nested one, and as Pydantic models of the two."""

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any

from pydantic import BaseModel

TEXT = ("A kilobyte of text, of which a cache knows nothing. " * 20)[:1024]


class Record(BaseModel):
    id: int
    sku: str
    name: str
    summary: str
    description: str
    brand: str
    category_id: int
    category: str
    currency: str
    price: float
    old_price: float | None
    stock: int
    available: bool
    weight: float
    colour: str
    size: str
    material: str
    origin: str
    image: str
    url: str
    rating: float
    reviews: int
    created: str
    updated: str


class Price(BaseModel):
    amount: float
    currency: str
    old: float | None


class Variant(BaseModel):
    sku: str
    colour: str
    size: str
    stock: int
    images: list[str]


class Product(BaseModel):
    id: int
    name: str
    description: str
    brand: str
    price: Price
    variants: list[Variant]
    attributes: dict[str, str]
    labels: list[str]


RECORD: dict[str, Any] = {
    "id": 635,
    "sku": "TB-635-BLK-M",
    "name": "Trail backpack, 24 litres",
    "summary": "A light backpack for a day in the hills, with room for a jacket and a map.",
    "description": "Ripstop nylon of 210 denier, a padded back and a hip belt that comes off. Two side pockets take a "
    "bottle each; the lid holds what has to be at hand. The rain cover has a pocket of its own at the bottom. "
    "Seams are taped, buckles can be replaced without sewing, and it weighs less than a loaf of bread. Made in a small "
    "works by the sea that mends what it sells, for as long as there is cloth of that colour left on a shelf.",
    "brand": "Northway",
    "category_id": 15,
    "category": "Backpacks",
    "currency": "EUR",
    "price": 89.9,
    "old_price": None,
    "stock": 42,
    "available": True,
    "weight": 0.78,
    "colour": "black",
    "size": "M",
    "material": "nylon",
    "origin": "Portugal",
    "image": "/static/products/635/front.webp",
    "url": "/products/635-trail-backpack",
    "rating": 4.6,
    "reviews": 218,
    "created": "2025-03-14T09:26:53Z",
    "updated": "2026-01-30T17:05:00Z",
}

PRODUCT: dict[str, Any] = {
    "id": 635,
    "name": "Trail backpack, 24 litres",
    "description": "Ripstop nylon of 210 denier, a padded back and a hip belt that comes off. Two side pockets take a "
    "bottle each; the lid holds what has to be at hand. The rain cover has a pocket of its own at the bottom. "
    "Seams are taped, buckles can be replaced without sewing, and it weighs less than a loaf.",
    "brand": "Northway",
    "price": {"amount": 89.9, "currency": "EUR", "old": None},
    "variants": [
        {
            "sku": f"TB-635-{colour[:3].upper()}-{size}",
            "colour": colour,
            "size": size,
            "stock": stock,
            "images": [f"/static/products/635/{colour}-{view}.webp" for view in ("front", "back")],
        }
        for colour, size, stock in (("black", "M", 42), ("olive", "M", 7), ("red", "L", 0))
    ],
    "attributes": {"material": "nylon", "volume": "24 l", "weight": "0.78 kg", "origin": "Portugal"},
    "labels": ["hiking", "new", "repairable"],
}

VALUES: dict[str, Any] = {
    "str": TEXT,
    "dict": RECORD,
    "nested dict": PRODUCT,
    "model": Record(**RECORD),
    "nested model": Product(**PRODUCT),
}
"""The payloads by name. Each is between 1,000 and 1,100 bytes as JSON."""


@cache
def prose(size: int) -> str:
    """So many characters that compress as text does, to a half or a third: words of ten thousand, by Zipf."""
    chance = random.Random(size)
    letters = "etaoinshrdlucmfwypvbgk"
    weights = [1 / number for number in range(1, len(letters) + 1)]
    words = ["".join(chance.choices(letters, weights, k=chance.randint(2, 9))) for _ in range(10_000)]
    by_rank = list(accumulate(1 / number for number in range(1, len(words) + 1)))
    return " ".join(chance.choices(words, cum_weights=by_rank, k=size))[:size]


def sizes() -> dict[str, int]:
    """The size of each payload as JSON, in bytes."""
    return {
        name: len(value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value, separators=(",", ":")))
        for name, value in VALUES.items()
    }


def _nothing(value: Any) -> None:
    pass


def _spoil_record(value: Any) -> None:
    value["name"] = "spoilt"


def _spoil_product(value: Any) -> None:
    value["variants"][0]["images"].append("spoilt")


def _spoil_model(value: Any) -> None:
    value.name = "spoilt"


def _spoil_nested_model(value: Any) -> None:
    value.variants[0].images.append("spoilt")


SPOIL: dict[str, Callable[[Any], None]] = {
    "str": _nothing,
    "dict": _spoil_record,
    "nested dict": _spoil_product,
    "model": _spoil_model,
    "nested model": _spoil_nested_model,
}
"""What a careless caller does to what it got."""
