"""Policies by path, for routes of any framework: one place that says which requests are cached, and how."""

import re
from collections.abc import Mapping

from starlette.requests import HTTPConnection
from starlette.routing import compile_path

from asynctag.errors import ConfigurationError
from asynctag.http.rules import Policy


class PathPolicies:
    """The policy of the first path that fits a request: `"/products/{id:int}"`, `"/{rest:path}"`, as in Starlette.

    `None` in the place of a policy leaves these paths out. Raises `ConfigurationError` for patterns that are none.
    """

    def __init__(self, policies: Mapping[str, Policy | None]) -> None:
        self._policies: list[tuple[re.Pattern[str], Policy | None]] = []
        for pattern, policy in policies.items():
            if policy is not None and not isinstance(policy, Policy):
                raise ConfigurationError(f"policy={{{pattern!r}: {policy!r}}}: give a Policy, or None to leave it out")
            self._policies.append((_compiled(pattern), policy))

    def __call__(self, connection: HTTPConnection) -> Policy | None:
        path = connection.scope["path"]
        return next((policy for pattern, policy in self._policies if pattern.match(path)), None)


def _compiled(pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern.startswith("/"):
        raise ConfigurationError(f'policy={{{pattern!r}: ...}}: a path begins with "/", as in "/products/{{id:int}}"')
    try:
        return compile_path(pattern)[0]
    except (ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"policy={{{pattern!r}: ...}}: {error}. Write it as a path of Starlette, with {{name}}, {{name:int}} or "
            f"{{name:path}}"
        ) from error
