"""What all of them send, and how often it was computed."""

from benchmarks.workers.payloads import VALUES, Product

PRODUCT: Product = VALUES["nested model"]
BODY = PRODUCT.model_dump_json().encode()

computed = 0


def compute() -> Product:
    """The product, as a route gets it; counted, so that it shows whether a request was a hit."""
    global computed
    computed += 1
    return PRODUCT
