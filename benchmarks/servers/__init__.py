"""ASGI applications that all answer `/products/635` with the same body of 1 KB."""
