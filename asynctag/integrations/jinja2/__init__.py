"""Jinja2: windows and cached fragments, as tags of templates.

    {% window "cart_badge", currency="EUR" %}

    {% window with currency, product_id=product.id %} ... {{ request.user.name }} ... {% endwindow %}

    {% cache 60, tags=["product:" ~ product.id], vary=[currency] %} ... {% endcache %}

The first places a registered window. The second is a window whose body stands in the template: it is rendered on every
serve, with the names that it declares, the environment's globals, and the request that is being served. The third is a
fragment that is cached.
"""

try:
    import jinja2  # noqa: F401
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError("asynctag.integrations.jinja2 needs Jinja2: pip install asynctag[jinja2]") from error

from asynctag.integrations.jinja2.tags import CacheExtension, install

__all__ = ["CacheExtension", "install"]
