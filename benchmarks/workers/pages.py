"""A page of 20 KB with three places in it, as a cached function and as a template of Jinja2."""

import asyncio
from typing import Any

import jinja2

from asynctag import Cache
from benchmarks.workers.payloads import prose

TEXT = prose(5_120)


def shown(number: int) -> str:
    return f"<b>{number}</b>"


def pages(cache: Cache) -> dict[str, Any]:
    """By kind, functions of an id: hits once they have been awaited, or renderings."""

    @cache.window(name="at_once")
    async def at_once(number: int) -> str:
        return shown(number)

    @cache.window(name="after_a_turn")
    async def after_a_turn(number: int) -> str:
        await asyncio.sleep(0)
        return shown(number)

    @cache.cached(name="plain")
    async def plain(page_id: int) -> str:
        return TEXT.join(["", *map(shown, range(3)), ""])

    @cache.cached(name="windows")
    async def windows(page_id: int) -> str:
        return TEXT.join(["", *map(at_once, range(3)), ""])

    @cache.cached(name="turns")
    async def turns(page_id: int) -> str:
        return TEXT.join(["", *map(after_a_turn, range(3)), ""])

    @cache.cached(name="source")
    async def source(page_id: int) -> str:
        return TEXT.join(["", *(f"{{{{ shown({number}) }}}}" for number in range(3)), ""])

    environment = jinja2.Environment(autoescape=False)
    environment.globals["shown"] = shown
    template = environment.from_string(TEXT.join(["", *(f"{{{{ shown({number}) }}}}" for number in range(3)), ""]))

    async def rendered(page_id: int) -> str:
        return template.render()

    async def compiled(page_id: int) -> str:
        return environment.from_string(await source(page_id)).render()

    return {
        "plain": plain,
        "windows": windows,
        "turns": turns,
        "rendered": rendered,
        "compiled": compiled,
    }
