"""Programs that use asynctag: each is complete, runs by itself, and is run by the tests."""
