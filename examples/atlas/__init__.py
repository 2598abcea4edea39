"""An atlas of the world's airports: a FastAPI application in which every cached page goes when its data changes.

Read it in this order: `data.py` (SQLite, and where tags come from), `catalogue.py` (cached functions, built from
each other), `app.py` (cached responses, and the edit that invalidates). `pages.py` is HTML; `demo.py` drives it all
over HTTP, and `serve.py` leaves it running for a browser.
"""
