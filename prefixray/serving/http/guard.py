"""What stands before the application: the token, the names that the server goes by, and the size of a request."""

import hmac
import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefixray.errors import UserError
from prefixray.serving.http.protocol import problem

MOST_BYTES = 4 << 20
"""Of a request's body."""
_HOST = re.compile(r"(?:\[([^]]+)\]|([^:]*))(?::\d*)?")
"""A request's `Host`: an address in brackets or a name, and a port."""


def check_binding(host: str, token: str | None) -> None:
    """Raise `UserError` where others could reach the server and no token keeps them out."""
    if not is_local(host) and not token:
        raise UserError(
            f"--host: {host}: others can reach it; set a token by --token, or by PREFIXRAY_TOKEN in the environment"
        )


def is_local(host: str) -> bool:
    """Whether a host is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Lets requests through that bring the token, are meant for this server and are not too large.

    Without a token the server is a local one. Then the name in a request's `Host` has to be a local one, too: else a
    page in the user's browser could reach the server by a name of its own that it lets point here.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, open_paths: Sequence[str]) -> None:
        self._app, self._token, self._open = app, token, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, _Limited(receive), send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if self._token is None:
            host = headers.get("host", "")
            named = _HOST.fullmatch(host)
            if named is None or not is_local(named[1] or named[2]):
                return _refused(403, f"Host: {host}: is no name of this machine; start the server with a token")
        elif path not in self._open:
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                response = _refused(401, "Authorization: this server wants its token: Bearer TOKEN (api_key=TOKEN)")
                response.headers["www-authenticate"] = "Bearer"
                return response
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return _refused(413, f"the request has {length} bytes; this server takes {MOST_BYTES}")
        return None


class _Limited:
    """Counts what a request without a length brings."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._num_bytes = receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > MOST_BYTES:
            raise HTTPException(413, f"the request has more than {MOST_BYTES} bytes")
        return message


def _refused(status: int, message: str) -> JSONResponse:
    content: dict[str, Any] = problem(message)
    return JSONResponse(content, status)
