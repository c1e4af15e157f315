"""An invented record of a finished sweep, with all that a report can show."""

import copy
from typing import Any

from prefixray.results.record import ArmResult, ExampleOutputs, Results, SearchTrial
from prefixray.system.records import Scalar


def arm(name: str, bleu: float, difference: float | None, stored: int) -> ArmResult:
    return {
        "arm": name,
        "method": None if name == "untuned" else name,
        "config": {},
        "seeds": [{"seed": 1, "scores": {"bleu": bleu}, "dev_loss": 1.6, "folder": f"final/{name}-0-1"}],
        "scores": {"bleu": {"value": bleu, "low": bleu - 3.21, "high": bleu + 2.34}},
        "sd": {"bleu": None},
        "difference": None
        if difference is None
        else {"value": difference, "low": difference - 4, "high": difference + 5},
        "p": None if difference is None else 0.2,
        "p_holm": None if difference is None else 0.4,
        "trained_parameters": stored,
        "stored_parameters": stored,
        "num_trials": 12,
        "minutes": 3.456,
        "searched": True,
    }


def trial(name: str, number: int, config: dict[str, Scalar], losses: list[float]) -> SearchTrial:
    steps = [8, 16, 40][: len(losses)]
    done = steps[-1] == 40
    return {
        "arm": name,
        "number": number,
        "config": config,
        "step": steps[-1],
        "num_steps": 40,
        "dev_loss": losses[-1],
        "state": "done" if done else "stopped",
        "rung": None if done else len(steps),
        "curve": list(zip(steps, losses, strict=True)),
    }


def prefix_trials() -> list[SearchTrial]:
    found = []
    for number in range(12):
        config: dict[str, Scalar] = {
            "preseqlen": (5, 10, 20)[number % 3],
            "mid_dim": (None, 512)[number % 2],
            "init_token": (None, "table-to-text:", "restaurant")[number % 3],
            "learning_rate": 0.001 * (number + 1),
        }
        losses = [2.0 + 0.01 * number, 1.8 + 0.01 * number, 1.6 + 0.01 * number][: 3 if number < 6 else 1 + number % 2]
        found.append(trial("prefix", number, config, losses if number != 11 else [15.0]))
    return found


def example(number: int) -> ExampleOutputs:
    return {
        "source": f"name : Place {number}",
        "references": [f"Reference {number}.", "Another <one>."],
        "outputs": {"untuned": "", "prefix": f"Prefix {number}.", "finetune": f"Full {number}."},
        "scores": {"untuned": 0.0, "prefix": 40.0 + number, "finetune": 50.0},
    }


def finished_sweep() -> Results:
    """A search of twelve prefixes, three arms in the table, thirty examples."""
    examples = [example(number) for number in range(30)]
    for one in examples[3:]:
        one["arm"] = "prefix"
    return {
        "sweep": "tiny",
        "base": "package:model.gguf",
        "base_digest": "ab12",
        "task": "e2e",
        "split": "test",
        "num_sources": 40,
        "num_sources_total": 630,
        "metric": "bleu",
        "reference": "finetune",
        "metrics": ["bleu"],
        "signatures": {"bleu": "case:lc"},
        "decoding": {"num_beams": 5},
        "precision": "fp32",
        "num_parameters": 134_515_008,
        "versions": {"torch": "2.13.0"},
        "machine": {"num_cpus": 2},
        "seed": 1,
        "arms": [
            arm("untuned", 2.13, -54.0, 0),
            arm("prefix", 58.31, 2.2, 115_200),
            arm("finetune", 56.11, None, 134_515_008),
        ],
        "resolution": 8.2,
        "search": prefix_trials(),
        "rungs": [8, 16],
        "importance": [{"arm": "prefix", "step": 8, "num_trials": 12, "shares": {"mid_dim": 0.7, "preseqlen": 0.3}}],
        "examples": examples,
        "budget": {"minutes": 12.0},
    }


def older_sweep(results: Results) -> Results:
    """The record as it was before curves, scores of examples, rungs and importance stood in it."""
    record: Any = copy.deepcopy(results)
    del record["rungs"], record["importance"], record["budget"]
    for one in record["search"]:
        del one["curve"]
    for one in record["examples"]:
        one.pop("scores")
        one.pop("arm", None)
    old: Results = record
    return old
