"""The application: OpenAI's `/v1/models`, `/v1/completions` and `/v1/chat/completions`, `/health` and `/metrics`."""

import asyncio
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ExceptionHandler

from prefixray.errors import UserError
from prefixray.serving import batch
from prefixray.serving.answer import Answer
from prefixray.serving.batch import End
from prefixray.serving.drawing import Sampling
from prefixray.serving.engine import Engine, Full
from prefixray.serving.http.answering import Answers, Ended, Stream
from prefixray.serving.http.guard import Guard
from prefixray.serving.http.metrics import metrics_text
from prefixray.serving.http.protocol import Asked, ChatAsked, CompletionAsked, Reply, problem
from prefixray.serving.models import Model


def make_app(engine: Engine, token: str | None = None) -> FastAPI:
    """The application; the engine runs as long as it does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()
        await asyncio.to_thread(engine.join)

    app = FastAPI(title="prefixray", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=token, open_paths=("/health",))
    service = _Service(engine)
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.metrics, methods=["GET"])
    app.add_api_route("/v1/models", service.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", service.show_model, methods=["GET"])
    app.add_api_route("/v1/completions", service.complete, methods=["POST"])
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"])
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


class _Service:
    """What the routes do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._created = int(time.time())
        self._num_refused = 0

    async def health(self) -> Response:
        """200 while requests are answered, 503 afterwards."""
        is_alive = self._engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "ended"}, 200 if is_alive else 503)

    async def metrics(self) -> Response:
        """Prometheus' text."""
        return PlainTextResponse(metrics_text(self._engine, self._num_refused), media_type="text/plain; version=0.0.4")

    async def list_models(self) -> dict[str, object]:
        """All models."""
        return {"object": "list", "data": [self._shown(name) for name in self._engine.models.by_name]}

    async def show_model(self, name: str) -> dict[str, object]:
        """One model."""
        self._model(name)
        return self._shown(name)

    async def complete(self, asked: CompletionAsked, request: Request) -> Response:
        """Answers to prompts, each a source in the form of the task's own."""
        model = self._model(asked.model)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        ids = [model.of_source(prompt) for prompt in prompts]
        return await self._answer(asked, ids, asked.max_tokens, request)

    async def chat(self, asked: ChatAsked, request: Request) -> Response:
        """An answer to a conversation."""
        ids = self._model(asked.model).of_messages([message.plain() for message in asked.messages])
        return await self._answer(asked, [ids], asked.max_completion_tokens or asked.max_tokens, request)

    async def _answer(
        self, asked: Asked, prompts: Sequence[Sequence[int]], max_tokens: int | None, request: Request
    ) -> Response:
        """Answers to prompts, of token ids each, whole or in pieces."""
        if not self._engine.is_alive:
            raise Ended
        model, limits = self._model(asked.model), self._engine.limits
        repeats = asked.n or 1
        if len(prompts) * repeats > limits.seats + limits.queue:
            raise UserError(
                f"prompt, n: {len(prompts) * repeats} answers: this server takes on {limits.seats + limits.queue} at "
                "once; ask for fewer, or start it with a longer --queue"
            )
        rooms = [model.room(self._engine.models.base, ids, max_tokens, limits) for ids in prompts]
        seed = secrets.randbits(62) if asked.seed is None else asked.seed

        def make(answers: Answers, index: int) -> batch.Request:
            place = index // repeats
            sampling = Sampling(asked.temperature or 0.0, asked.top_p or 1.0, _seed(seed + index % repeats))
            answer = _new_answer(model, asked, rooms[place])
            return batch.Request(model, *model.prompt(prompts[place]), answer, sampling, answers.listener(index))

        try:
            answers = Answers(self._engine, make, len(prompts) * repeats)
        except Full:
            self._num_refused += 1
            raise
        reply = Reply(isinstance(asked, ChatAsked), asked.model, sum(map(len, prompts)))
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return Stream(answers, _events(answers, reply, with_usage))
        whole = await answers.whole_unless_gone(request.receive)
        return Response(status_code=499) if whole is None else JSONResponse(reply.whole(*whole))

    def _model(self, name: str) -> Model:
        models = self._engine.models.by_name
        if name not in models:
            raise HTTPException(404, f"model: {name}: no such model here; they are {', '.join(models)}")
        return models[name]

    def _shown(self, name: str) -> dict[str, object]:
        about = self._engine.models.by_name[name].about
        return {"id": name, "object": "model", "created": self._created, "owned_by": "prefixray", "about": about}


def _seed(number: int) -> int:
    """A seed that torch takes."""
    return number % (1 << 63)


def _new_answer(model: Model, asked: Asked, max_tokens: int) -> Answer:
    tokenizer = model.template.tokenizer
    return Answer(
        functools.partial(tokenizer.decode, skip_special_tokens=True),  # type: ignore[arg-type]  # of one text, a text
        eos_id=model.template.eos_id,
        max_tokens=max_tokens,
        stop=asked.stops,
        one_line=asked.one_line,
        by_word=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    )


async def _events(answers: Answers, reply: Reply, with_usage: bool) -> AsyncIterator[str]:
    """The events of a stream."""
    begun: set[int] = set()
    ends: list[End] = []
    try:
        async for piece in answers.pieces():
            yield _event(reply.piece(piece.index, piece.text, piece.end, is_first=piece.index not in begun))
            begun.add(piece.index)
            ends += [] if piece.end is None else [piece.end]
    except Ended:
        yield _event(problem("the server has ended", kind="server_error"))
        return
    if with_usage:
        yield _event(reply.counted(ends))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, object]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _of_user(request: Request, error: Exception) -> Response:
    return JSONResponse(problem(str(error)), 400)


async def _of_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "it is registered for these"
    lines = [f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in error.errors()]
    return JSONResponse(problem("\n".join(lines)), 400)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "it is registered for these"
    code = "model_not_found" if error.status_code == 404 and str(error.detail).startswith("model:") else None
    return JSONResponse(problem(str(error.detail), code=code), error.status_code, error.headers)


async def _of_queue(request: Request, error: Exception) -> Response:
    assert isinstance(error, Full), "it is registered for these"
    content = problem(str(error), kind="rate_limit_error", code="queue_full")
    return JSONResponse(content, 429, {"retry-after": str(error.retry_after)})


async def _of_end(request: Request, error: Exception) -> Response:
    return JSONResponse(problem("the server has ended", kind="server_error"), 503)


_HANDLERS: dict[type[Exception], ExceptionHandler] = {
    UserError: _of_user,
    RequestValidationError: _of_form,
    HTTPException: _of_http,
    Full: _of_queue,
    Ended: _of_end,
}
