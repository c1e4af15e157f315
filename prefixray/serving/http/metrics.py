"""The engine's counts in Prometheus' text form."""

from collections.abc import Iterator

from prefixray.serving.engine import Engine


def metrics_text(engine: Engine, num_refused: int) -> str:
    """All metrics, each with its type and a line of help; `num_refused` requests have found the queue full."""
    return "".join(f"{line}\n" for line in _lines(engine, num_refused))


def _lines(engine: Engine, num_refused: int) -> Iterator[str]:
    counts = engine.counts
    yield from _metric("running", "gauge", "answers that are being written", engine.num_running)
    yield from _metric("waiting", "gauge", "requests that wait for a seat", engine.num_waiting)
    yield "# HELP prefixray_answers_total answers that have ended"
    yield "# TYPE prefixray_answers_total counter"
    for reason in ("stop", "length", "cancelled"):
        yield f'prefixray_answers_total{{reason="{reason}"}} {counts.answers[reason]}'
    yield from _metric("refused_total", "counter", "requests that found the queue full", num_refused)
    yield from _metric("prompt_tokens_total", "counter", "tokens of prompts", counts.prompt_tokens)
    yield from _metric("new_tokens_total", "counter", "tokens of ended answers", counts.new_tokens)
    yield from _metric("steps_total", "counter", "forwards that wrote a token of each row", counts.steps)
    yield from _metric("rows_total", "counter", "rows of all these forwards", counts.rows)
    yield "# HELP prefixray_first_token_seconds from a request to its first token"
    yield "# TYPE prefixray_first_token_seconds summary"
    yield f"prefixray_first_token_seconds_sum {counts.first_token_seconds:.6f}"
    yield f"prefixray_first_token_seconds_count {counts.num_first_tokens}"


def _metric(name: str, kind: str, help_text: str, value: int) -> Iterator[str]:
    yield f"# HELP prefixray_{name} {help_text}"
    yield f"# TYPE prefixray_{name} {kind}"
    yield f"prefixray_{name} {value}"
