"""What every request passes on its way to a route: the check of its token, and the count of its answer."""

import hmac
from collections.abc import Collection

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dwellmoe.serving.errors import error_fields

OTHER = "other"
"""Stands in the counts for paths that are not served, of which there is no end."""


class BearerToken:
    """Refuses requests without the token, but for some paths; an empty token refuses none."""

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str]) -> None:
        self._app, self._open_paths = app, open_paths
        self._expected = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._allowed(scope):
            await self._app(scope, receive, send)
            return
        message = "this server wants a token: Authorization: Bearer TOKEN"
        fields = error_fields(401, message, code="invalid_api_key")
        await JSONResponse(fields, 401, {"www-authenticate": "Bearer"})(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._expected)
        return not self._expected or (scheme.lower() == "bearer" and is_right)


class CountedRequests:
    """Counts each answer by path and status."""

    def __init__(self, app: ASGIApp, counter: Counter, paths: Collection[str]) -> None:
        self._app, self._counter, self._paths = app, counter, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else OTHER
                self._counter.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
