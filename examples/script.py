"""No web framework: nested caches, an invalidation, and what `explain` says of them. `python script.py`."""

from dataclasses import dataclass

import anyio

from asynctag import Cache, add_tags, tag

PRICES = {"kettle": 40, "toaster": 30, "lamp": 25}  # stands for a database
CATEGORIES = {"kitchen": ["kettle", "toaster"], "light": ["lamp"]}

cache = Cache(default_ttl=60)


@dataclass(frozen=True)
class Category:
    name: str
    prices: tuple[int, ...]


# `name=`: every script's module is called `__main__`, so module and function don't tell entries apart.


@cache.cached(name="price", tags=["product:{product}"])
async def price(product: str) -> int:
    print(f"    computing the price of the {product}")
    return PRICES[product]


@cache.cached(name="category")
async def category(name: str) -> Category:
    print(f"    computing the category {name}")
    add_tags(tag(type="listing", category=name))  # which products it holds; the prices bring tags of their own
    return Category(name, tuple([await price(product) for product in CATEGORIES[name]]))


@cache.cached(name="total")
async def total() -> int:
    print("    computing the total")
    return sum([sum((await category(name)).prices) for name in CATEGORIES])


async def main() -> None:
    print("The first call computes everything:")
    print("  total:", await total())
    print("The second finds it:")
    print("  total:", await total())
    print(" ", await total.explain())

    print("The kettle gets cheaper. What was built from its price goes, and nothing else:")
    PRICES["kettle"] = 35
    await cache.invalidate("product:kettle")
    print(" ", await total.explain())
    print(" ", await category.explain("light"))
    print("  total:", await total())

    await cache.aclose()


if __name__ == "__main__":
    anyio.run(main)
