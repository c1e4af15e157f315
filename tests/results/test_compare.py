"""The final stage's record, from hypotheses on disk: what is scored, on all sources and on their groups."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import Sourced
from prefixray.metrics import score
from prefixray.reporting.verdict import notes, verdict
from prefixray.results.artifacts import best_run
from prefixray.results.by_document import Part
from prefixray.results.compare import Facts, _notes, make_results
from prefixray.results.final_run import FinalRun
from prefixray.results.hypotheses import write_hypotheses
from prefixray.results.likelihoods import Likelihoods, write_likelihoods
from prefixray.results.record import Provenance, Results

SWEEP = """\
name: small
base: a-hub-id
task: {name: e2e}
train: {num_steps: 4}
arms:
  prefix: {preseqlen: 1, mid_dim: null, init_token: null, learning_rate: 1e-3}
  finetune: {learning_rate: 1e-3}
search: {num_trials: 1}
final: {metric: test/bleu, more_metrics: [test/ter, test/bleu], reference: finetune}
"""
TEXTS = [
    "the eagle is a cheap pub",
    "the mill serves italian food",
    "aromi is near the river",
    "zizzi is a coffee shop",
]
OUTPUTS: Mapping[str, Sequence[str]] = {
    "untuned": ["the", "mill", "river", "shop"],
    "prefix": [TEXTS[0], "the mill serves italian food near here", "aromi is by the river bank", "zizzi is a pub"],
    "finetune": ["the eagle is a pub", TEXTS[1], "aromi is near a river", TEXTS[3]],
}


def results(
    folder: Path,
    groups: Sequence[str | None],
    sweep: str = SWEEP,
    untrained: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> Results:
    (folder / "x.yaml").write_text(sweep, encoding="utf-8")
    config: SweepConfig = load_sweep(folder / "x.yaml")
    sources = [
        Sourced(f"source {i}", (text,), group) for i, (text, group) in enumerate(zip(TEXTS, groups, strict=True))
    ]
    runs = {arm.name: [FinalRun(arm, arm.trial({}), 0, 1, folder / "final" / f"{arm.name}-0-1")] for arm in config.arms}
    for name, (run,) in runs.items():
        write_hypotheses(run.folder, "test", OUTPUTS[name], sources)
        sizes = {"dev/loss": 1.5, "dev/best_loss": 1.0, "size/trained": 9, "size/stored": 9}
        done = {"state": "done", "step": 16, "metrics": sizes, "earlier": {"8": 1.0}}
        (run.folder / "result.json").write_text(json.dumps(done), encoding="utf-8")
    folders = {arm: folder / "final" / arm for arm in ("untuned", *untrained)}
    for arm, place in folders.items():
        write_hypotheses(place, "test", OUTPUTS.get(arm, TEXTS), sources)
    provenance = Provenance(
        base_digest="0",
        num_parameters=100,
        precision="fp32",
        data_digest="0",
        num_test_total=len(sources),
        metrics=("bleu",),
        device="cpu",
        num_threads=1,
    )
    decoding = {"num_beams": 1}
    facts = Facts(config, provenance, decoding, search=[], minutes={}, num_train=6, leaks=("1 of 4 is known",))
    facts = replace(facts, left_out=left_out or {})
    return make_results(facts, runs, {arm: [Part(place)] for arm, place in folders.items()}, sources)[0]


def test_further_metrics_stand_behind_the_primary_and_the_tasks_own_once_each(tmp_path: Path) -> None:
    made = results(tmp_path, [None] * 4)
    assert made["metrics"] == ["bleu", "ter"]
    assert made["notes"][0] == "1 of 4 is known"
    assert all(set(arm["scores"]) == {"bleu", "ter"} and "groups" not in arm for arm in made["arms"])


def test_the_curve_of_a_final_run_ends_with_its_last_loss(tmp_path: Path) -> None:
    made = results(tmp_path, [None] * 4)
    assert [arm["seeds"][0].get("curve") for arm in made["arms"]] == [None, *[[(8, 1.0), (16, 1.5)]] * 2]
    assert made["num_train"] == 6


def test_a_note_counts_the_final_runs_or_where_there_are_documents_the_seeds_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SWEEP.replace("final: {", "final: {num_seeds: 2, "), encoding="utf-8")
    config = load_sweep(tmp_path / "x.yaml")
    for document, told in (
        (None, "1 of 2 final runs ended well"),
        ("mill", "1 of 2 seeds ended well for all documents"),
    ):
        run = FinalRun(config.arms[0], config.arms[0].trial({}), 0, 1, tmp_path, document)
        of_prefix, of_finetune = _notes(config, {"prefix": [run]})
        assert of_prefix.startswith(f"prefix: {told};") and of_finetune.startswith("finetune: none of 2 ")


def test_each_group_of_sources_is_scored_alone(tmp_path: Path) -> None:
    made = results(tmp_path, ["unseen", "seen", "unseen", "seen"])
    for arm in made["arms"]:
        assert list(arm["groups"]) == ["seen", "unseen"]
        for name, rows in {"seen": [1, 3], "unseen": [0, 2]}.items():
            group = arm["groups"][name]
            assert group["num_sources"] == 2
            for metric in ("bleu", "ter"):
                alone = score(metric, [OUTPUTS[arm["arm"]][i] for i in rows], [[TEXTS[i]] for i in rows]).corpus()
                interval = group["scores"][metric]
                assert interval["value"] == pytest.approx(alone) and interval["low"] <= alone <= interval["high"]
    prefix, finetune = (next(arm for arm in made["arms"] if arm["arm"] == name) for name in ("prefix", "finetune"))
    assert finetune["groups"]["seen"]["difference"] is None
    for name, better in {"seen": -1, "unseen": 1}.items():
        difference = prefix["groups"][name]["difference"]
        assert difference is not None and difference["value"] * better > 0
        assert difference["value"] == pytest.approx(
            prefix["groups"][name]["scores"]["bleu"]["value"] - finetune["groups"][name]["scores"]["bleu"]["value"]
        )


def test_sources_of_one_group_or_of_very_many_have_no_table_of_their_own(tmp_path: Path) -> None:
    assert all("groups" not in arm for arm in results(tmp_path, ["sport"] * 4)["arms"])


def test_a_note_says_that_a_users_groups_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = "train: x.yaml, dev: x.yaml, test: x.yaml"
    own = SWEEP.replace("{name: e2e}", f"{{name: custom, {files}, columns: {{group: topic}}}}")
    topics = ["sport", "news", "sport", "arts"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefixray.results.scores.MOST_GROUPS", 2)
    note = "task.columns.group: 3 groups of test sources, more than 2: none is scored alone"
    made = results(tmp_path, topics, own)
    assert note in made["notes"] and all("groups" not in arm for arm in made["arms"])
    assert note not in results(tmp_path, topics)["notes"], "a published set's groups are not the user's"
    monkeypatch.setattr("prefixray.results.scores.MOST_GROUPS", 3)
    assert not any("task.columns.group" in line for line in results(tmp_path, topics, own)["notes"])


def test_an_arm_that_sees_the_document_is_no_rival_and_the_others_distances_to_it_are_known(tmp_path: Path) -> None:
    for place, text in {
        "in_context": {"kv": {"numbers": 4000, "bytes": 8000}, "text": {"num_tokens": 2000, "num_seen": 1500}},
        "prefix-0-1": {"kv": {"numbers": 100, "bytes": 200}},
    }.items():
        (tmp_path / "final" / place).mkdir(parents=True)
        (tmp_path / "final" / place / "test.json").write_text(json.dumps(text))
    without = results(tmp_path, [None] * 4)
    made = results(tmp_path, [None] * 4, untrained=["in_context"])
    arms = {arm["arm"]: arm for arm in made["arms"]}
    assert list(arms) == ["untuned", "in_context", "prefix", "finetune"]
    assert arms["prefix"]["p_holm"] == without["arms"][1]["p_holm"] is not None
    seen = arms["in_context"]
    assert (seen["p"], seen["method"], seen["stored_parameters"], seen["kv_bytes"]) == (None, None, 4000, 8000)
    assert (arms["prefix"]["stored_parameters"], arms["prefix"]["kv_bytes"]) == (9, 200)
    assert "kv_bytes" not in arms["finetune"] and "to_context" not in seen
    for name in ("untuned", "prefix", "finetune"):
        distance = arms[name]["to_context"]
        gap = arms[name]["scores"]["bleu"]["value"] - seen["scores"]["bleu"]["value"]
        assert distance["value"] == pytest.approx(gap) and distance["low"] <= gap <= distance["high"]
    assert any("in_context sees the first 1,500 of the document's 2,000 tokens" in note for note in made["notes"])
    assert made["resolution"] == without["resolution"]


def test_an_arm_that_could_not_be_decoded_is_named_in_a_note(tmp_path: Path) -> None:
    made = results(tmp_path, [None] * 4, left_out={"in_context": "out of memory"})
    assert [arm["arm"] for arm in made["arms"]] == ["untuned", "prefix", "finetune"]
    wanted = "in_context is left out, since it could not be decoded: out of memory; the same command tries it again"
    assert wanted in made["notes"]


def test_arms_are_compared_by_likelihoods_without_a_look_at_their_texts(tmp_path: Path) -> None:
    sums = {"untuned": [8.0, 9.0, 7.0, 9.0], "prefix-0-1": [2.0, 1.0, 2.0, 3.0], "finetune-0-1": [1.0, 1.0, 1.0, 1.0]}
    for place, nll in sums.items():
        write_likelihoods(tmp_path / "final" / place, "test", Likelihoods([2, 2, 3, 3], nll, None), {})
    made = results(tmp_path, [None] * 4, SWEEP.replace("test/bleu, more", "test/perplexity, more"))
    assert made["metrics"] == ["perplexity", "bleu", "ter"]
    prefix, finetune = made["arms"][1:]
    assert finetune["scores"]["perplexity"]["value"] == pytest.approx(math.exp(0.4))
    assert prefix["difference"] is not None and prefix["difference"]["low"] > 0
    assert "perplexity: lower is better" in notes(made)
    assert best_run(made, "prefix") == "final/prefix-0-1"
    assert verdict(made).text.startswith("No winner: finetune and prefix are 0.73 perplexity apart")
