"""A server on a real socket answers OpenAI's own client, and clients that misbehave."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from support.served import alone, running_server, save_all, wait_until

from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.serving.engine import Engine
from prefixray.serving.http.guard import MOST_BYTES, check_binding
from prefixray.serving.models import Limits

SOURCES = ["name : The Eagle | food : Chinese", "name : The Mill"]
LONG = {"max_tokens": 200, "extra_body": {"one_line": False}}


@pytest.fixture
def folders(tiny_gpt2: Base, tmp_path: Path) -> Mapping[str, Path]:
    return save_all(tmp_path, tiny_gpt2)


@pytest.fixture
def server(folders: Mapping[str, Path]) -> Iterator[tuple[str, Engine]]:
    with running_server(folders) as running:
        yield running


@pytest.fixture
def slow(folders: Mapping[str, Path]) -> Iterator[tuple[str, Engine]]:
    """A server of one seat and one place in the queue, which wants a token and takes its time."""
    limits = Limits(seats=1, queue=1)
    with running_server(folders, limits, token="secret-word", seconds_per_step=0.02) as running:
        yield running


def client_of(address: str, token: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)


def asked(address: str, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict, str]:
    """The status, the headers and the body of an answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read().decode()


def test_openais_client_gets_what_the_artifact_writes_in_python(
    server: tuple[str, Engine], folders: Mapping[str, Path]
) -> None:
    address, engine = server
    with client_of(address) as client:
        assert [model.id for model in client.models.list()] == ["untuned", *folders]
        assert client.models.retrieve("lora").id == "lora"
        for name in ("long", "lora"):
            expected = [alone(folders, name, source) for source in SOURCES]
            both = client.completions.create(model=name, prompt=SOURCES)
            assert [choice.text for choice in both.choices] == expected
            assert {choice.finish_reason for choice in both.choices} <= {"stop", "length"}
            asked_for = engine.models.by_name[name]
            assert both.usage is not None
            assert both.usage.prompt_tokens == sum(len(asked_for.of_source(source)) for source in SOURCES)
            assert 0 < both.usage.completion_tokens <= 24
            chat = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": SOURCES[0]}], max_completion_tokens=5
            )
            message = chat.choices[0].message
            assert (message.role, message.content) == ("assistant", alone(folders, name, SOURCES[0], 5))


def test_a_stream_brings_the_same_text_in_pieces(server: tuple[str, Engine], folders: Mapping[str, Path]) -> None:
    address, _ = server
    expected = alone(folders, "long", SOURCES[0])
    with client_of(address) as client:
        chunks = list(
            client.chat.completions.create(
                model="long",
                messages=[{"role": "user", "content": [{"type": "text", "text": SOURCES[0]}]}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(pieces) == expected and len([piece for piece in pieces if piece]) > 1
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 1
        text = [
            chunk.choices[0].text for chunk in client.completions.create(model="long", prompt=SOURCES[0], stream=True)
        ]
        assert "".join(text) == expected


def test_drawn_answers_come_again_with_their_seed(server: tuple[str, Engine]) -> None:
    settings = {"model": "short", "prompt": SOURCES[0], "temperature": 1.5, "top_p": 0.95, "seed": 3, "n": 3}
    with client_of(server[0]) as client:
        first, again = ([choice.text for choice in client.completions.create(**settings).choices] for _ in range(2))
        assert first == again and len(set(first)) > 1
        assert client.completions.create(**{**settings, "seed": 4, "n": 1}).choices[0].text == first[1]


def test_a_prompt_is_counted_once_for_all_its_answers(server: tuple[str, Engine]) -> None:
    address, engine = server
    expected = sum(len(engine.models.by_name["short"].of_source(source)) for source in SOURCES)
    settings = {"model": "short", "prompt": SOURCES, "n": 3, "max_tokens": 2}
    with client_of(address) as client:
        whole = client.completions.create(**settings)
        *_, last = client.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    assert len(whole.choices) == 3 * len(SOURCES)
    for usage in (whole.usage, last.usage):
        assert usage is not None and usage.prompt_tokens == expected
        assert usage.total_tokens == expected + usage.completion_tokens


def test_what_is_wrong_with_a_request_is_said(server: tuple[str, Engine]) -> None:
    address, engine = server
    with client_of(address) as client:
        with pytest.raises(openai.NotFoundError, match=r"model: nobody: no such model here; they are untuned, short"):
            client.completions.create(model="nobody", prompt="a")
        for settings, told in (
            ({"logprobs": 3}, "logprobs"),
            ({"n": 0}, "n: "),
            ({"temperature": -1}, "temperature: "),
            ({"extra_body": {"top_k": 3}}, "top_k: Extra inputs are not permitted"),
            ({"prompt": ["a"] * 41, "n": 2}, "82 answers: this server takes on 80 at once"),
            ({"max_tokens": 255}, "of the 256 positions"),
            ({"prompt": "a" * 600, "max_tokens": 100}, "of the 256 positions"),
        ):
            with pytest.raises(openai.BadRequestError, match=told):
                client.completions.create(**{"model": "short", "prompt": "a", **settings})  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="send one user message"):
            turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
            client.chat.completions.create(model="short", messages=turns)  # type: ignore[arg-type]
    large = {"content-length": str(MOST_BYTES + 1)}
    assert asked(address, "POST", "/v1/completions", **large)[0] == 413
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.2:8000", "[::1]", "[::1]:8000"):
        assert asked(address, "GET", "/v1/models", host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "[::1].evil.example", "localhost:80:80", "[]", ""):
        status, _, text = asked(address, "GET", "/v1/models", host=host)
        assert status == 403 and f"Host: {host}: is no name of" in text, "no name that a page could let point here"
    assert asked(address, "GET", "/nothing")[0] == 404
    half = "\ud83d"
    for path, body, status in (
        ("completions", {"model": half, "prompt": "a"}, 404),
        ("completions", {"model": "short", "prompt": half}, 400),
        ("completions", {"model": "short", "prompt": "a", half: 1}, 400),
        ("chat/completions", {"model": "short", "messages": [{"role": "user", "content": half}]}, 400),
    ):
        assert asked(address, "POST", f"/v1/{path}", body)[0] == status, "half a surrogate pair is no text"
    assert engine.num_running == engine.num_waiting == 0


def test_a_body_without_a_length_is_limited(server: tuple[str, Engine]) -> None:
    where = urlsplit(server[0])
    with socket.create_connection((where.hostname, where.port)) as sock:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(MOST_BYTES // 0x10000 + 2):
                sock.sendall(chunk)
        except ConnectionError:
            pass  # the server has answered and hung up
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_token_is_wanted(slow: tuple[str, Engine]) -> None:
    address, _ = slow
    assert asked(address, "GET", "/health")[0] == 200
    for path in ("/v1/models", "/metrics"):
        assert asked(address, "GET", path)[0] == 401
        assert asked(address, "GET", path, authorization="Bearer secret-wor")[0] == 401
        assert asked(address, "GET", path, authorization="Bearer secret-word", host="evil.example")[0] == 200
    for host in ("127.0.0.1", "::1", "localhost"):
        check_binding(host, None)
    check_binding("0.0.0.0", "secret-word")
    for host in ("0.0.0.0", "10.0.0.1", "example.org"):
        with pytest.raises(UserError, match=f"^--host: {host}: others can reach it; set a token"):
            check_binding(host, None)


def test_a_full_queue_is_429_and_a_client_that_goes_away_frees_its_seat(slow: tuple[str, Engine]) -> None:
    address, engine = slow
    where = urlsplit(address)

    def leaving(stream: bool) -> socket.socket:
        body = json.dumps({"model": "short", "prompt": "a", "max_tokens": 200, "one_line": False, "stream": stream})
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret-word\r\n"
        sock = socket.create_connection((where.hostname, where.port))
        sock.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        return sock

    writing, waiting = leaving(stream=True), leaving(stream=False)
    wait_until(lambda: engine.num_running == engine.num_waiting == 1)
    with client_of(address, "secret-word") as client:
        with pytest.raises(openai.RateLimitError, match="the queue is full") as refused:
            client.completions.create(model="short", prompt="a")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert writing.recv(1000).startswith(b"HTTP/1.1 200"), "a stream has begun"
        first = engine.counts.steps
        writing.close()
        wait_until(lambda: engine.counts.answers["cancelled"] == 1)
        wait_until(lambda: engine.num_running == 1 and engine.num_waiting == 0)
        waiting.close()  # the second writes now, whole and not in pieces
        wait_until(lambda: engine.num_running == 0)
        assert engine.counts.steps - first < 200, "neither was written to its end"
        assert client.completions.create(model="short", prompt="a", max_tokens=2).choices[0].finish_reason
    wait_until(lambda: engine.num_running == 0)  # the answer may be there a moment before
    status, _, text = asked(address, "GET", "/metrics", authorization="Bearer secret-word")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert lines['prefixray_answers_total{reason="cancelled"}'] == "2"
    assert lines["prefixray_refused_total"] == "1" and lines["prefixray_running"] == "0"
    assert float(lines["prefixray_first_token_seconds_sum"]) > 0


def test_answers_are_cut_where_the_server_ends(folders: Mapping[str, Path]) -> None:
    with running_server(folders, seconds_per_step=0.02) as (address, engine):
        with client_of(address) as client:
            stream = client.completions.create(model="short", prompt="a", stream=True, **LONG)  # type: ignore[call-overload]
            next(iter(stream))
            engine.stop()
            with pytest.raises(openai.APIError, match="the server has ended"):
                list(stream)
            with pytest.raises(openai.InternalServerError, match="the server has ended"):
                client.completions.create(model="short", prompt="a")
        assert asked(address, "GET", "/health")[0] == 503
