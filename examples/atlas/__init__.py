"""An atlas of the world's airports: a FastAPI application in which every cached page goes when its data changes.

Read it in this order: `data.py` (the queries, and where tags come from), `catalogue.py` (cached functions, built from
each other), `visitors.py` (what is a visitor's own on cached pages), `app.py` (cached responses, and the edit that
invalidates, in a transaction). `connections.py` is SQLite or PostgreSQL; `pages.py` and `markup.py` are HTML;
`serve.py` leaves it running for a browser. The demo drives it all over HTTP: `demo.py` in one process, `workers.py` in
several that share a Valkey, with `show.py` (what is printed and checked) and `processes.py` (what is started, and
ended).
"""
