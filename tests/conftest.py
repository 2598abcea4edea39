"""What every test finds: a fixture that runs async tests on asyncio and on trio."""

import pytest

pytest.register_assert_rewrite("asynctag.testing")


@pytest.fixture(params=[pytest.param("asyncio", id="asyncio"), pytest.param("trio", id="trio")])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
