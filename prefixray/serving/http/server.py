"""Runs the application until a signal ends it."""

import logging
import socket
from types import FrameType

import uvicorn

from prefixray.errors import UserError
from prefixray.serving.engine import Engine
from prefixray.serving.http.app import make_app

_SECONDS_TO_END = 5  # for answers that were cut to reach their clients


class Server(uvicorn.Server):
    """A server whose answers are cut where a signal ends it, and which ends where its engine has failed."""

    def __init__(self, engine: Engine, *, token: str | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(engine, token),
                lifespan="on",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SECONDS_TO_END,
            )
        )
        self._engine = engine

    def run_on(self, bound: socket.socket) -> None:
        """Serve on this socket. Raises `KeyboardInterrupt` after a signal, and the engine's own error."""
        self.run([bound])
        if self._engine.failure is not None:
            raise self._engine.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and cut the answers that are being written."""
        self._engine.stop()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        return await super().on_tick(counter) or self._engine.failure is not None


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 is any free one. Raises `UserError` where there is none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host, --port: {host}, {port}: {reason}; take another") from None
