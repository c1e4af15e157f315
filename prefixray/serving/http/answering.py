"""The seam between the event loop and the engine's thread: pieces of answers as an asynchronous iterator."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from prefixray.serving.batch import End, Request
from prefixray.serving.engine import Engine


class Ended(Exception):
    """The server has ended before the answer was whole."""


@dataclass(frozen=True)
class Piece:
    """A piece of one answer of a request."""

    index: int  # of the answer
    text: str
    end: End | None


class Answers:
    """The answers to one HTTP request: so many of them, from submission to the end or to the client's leaving."""

    def __init__(self, engine: Engine, make: Callable[["Answers", int], Request], count: int) -> None:
        """`make` gives request number i; its listener is `listener(i)`. Raises the engine's `Full`."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._requests: Sequence[Request] = [make(self, index) for index in range(count)]
        engine.submit(self._requests)

    def listener(self, index: int) -> Callable[[str, End | None], None]:
        """What the engine calls with the pieces of the answer `index`."""

        def listen(text: str, end: End | None) -> None:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, Piece(index, text, end))

        return listen

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces as they come. Raises `Ended`."""
        num_open = len(self._requests)
        while num_open:
            piece = await self._pieces.get()
            if not piece.text and piece.end is None:
                raise Ended
            num_open -= piece.end is not None
            yield piece

    async def whole(self) -> tuple[list[str], list[End]]:
        """All answers, and how they ended. Raises `Ended`."""
        texts = [""] * len(self._requests)
        ends: dict[int, End] = {}
        async for piece in self.pieces():
            texts[piece.index] += piece.text
            if piece.end is not None:
                ends[piece.index] = piece.end
        return texts, [ends[index] for index in range(len(texts))]

    async def whole_unless_gone(self, receive: Receive) -> tuple[list[str], list[End]] | None:
        """As `whole`; None where the client leaves before."""
        answered, left = asyncio.ensure_future(self.whole()), asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((answered, left), return_when=asyncio.FIRST_COMPLETED)
            return answered.result() if answered.done() else None
        finally:
            answered.cancel()
            left.cancel()
            self.cancel()

    def cancel(self) -> None:
        """Nobody listens any more: free the seats."""
        self._engine.cancel(self._requests)


class Stream(StreamingResponse):
    """Server-sent events that free the seats of their answers when they end, however they do."""

    def __init__(self, answers: Answers, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
