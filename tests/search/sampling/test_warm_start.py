"""What a sweep takes over from another one: which trials fit, what is tried first, and what the sampler sees."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from support.studies import ask
from support.sweep_files import VALID, load

from prefixray.config.identity import dump
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.data.documents import Document
from prefixray.data.documents.made import made_from
from prefixray.errors import UserError
from prefixray.results.record import Provenance, SearchTrial
from prefixray.search.importance import parameter_importance
from prefixray.search.sampling.warm_start import KnownTrial, best_first, read_warm_start, warm_start_text
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.system.records import Scalar


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


OTHER = VALID.replace("name: small", "name: other")
WARM = VALID.replace("rungs: [10, 20]", "rungs: [10, 20], warm_start: runs/other")


def _trial(number: int, loss: float | None, state: str = "done", arm: str = "prefix", **values: Scalar) -> SearchTrial:
    config: dict[str, Scalar] = {"preseqlen": 5, "mid_dim": None, "init_token": None, "learning_rate": 1e-3, **values}
    step = 40 if state == "done" else 20
    return SearchTrial(
        arm=arm, number=number, config=config, step=step, num_steps=40, dev_loss=loss, state=state, rung=None
    )


TRIALS = [
    _trial(0, 2.0),
    _trial(1, 1.5, mid_dim=512, prefix_dropout=0.1, learning_rate=5e-4),
    _trial(2, 1.6, preseqlen=1),
    _trial(3, 2.2, "stopped", learning_rate=2e-3),
    _trial(4, None, "failed", learning_rate=1e-2),
    _trial(5, 1.1, "running"),
]


def write_sweep(text: str = OTHER, trials: list[SearchTrial] = TRIALS, **results: str) -> SweepConfig:
    config = load(text)
    folder = Path("runs", config.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(dump(config)))
    (folder / "results.json").write_text(json.dumps({"search": trials, **results}))
    return config


def refusal(text: str = WARM, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_warm_start(load(text, *overrides))
    return str(caught.value)


def test_the_trials_that_have_ended_fit_the_same_space_and_the_best_come_first() -> None:
    write_sweep()
    config = load(WARM)
    known = read_warm_start(config)
    assert [(trial["state"], trial["step"], trial["loss"]) for trial in known["prefix"]] == [
        ("done", 40, 2.0),
        ("done", 40, 1.5),
        ("done", 40, 1.6),
        ("stopped", 20, 2.2),
        ("failed", 20, None),
    ]
    assert [trial["values"] for trial in known["prefix"]] == [trial["config"] for trial in TRIALS[:5]]
    assert best_first(known["prefix"], 8) == [TRIALS[1]["config"], TRIALS[2]["config"]]
    assert [len(best_first(known["prefix"], count)) for count in (1, 4, 12, 400)] == [1, 1, 3, 3]
    assert warm_start_text(known, config) == [
        "prefix: 5 trials of runs/other are its sampler's evidence, and 2 of their configurations come first."
    ]
    assert read_warm_start(load()) == {"prefix": []} and warm_start_text({"prefix": []}, load()) == []


def test_a_loss_at_a_rung_over_another_share_of_dev_than_here_is_no_evidence() -> None:
    sampled = _trial(6, 2.4, "stopped", learning_rate=4e-3)
    sampled |= {"step": 10, "is_sampled": True}
    write_sweep(trials=[*TRIALS, sampled])

    def num_known(*overrides: str) -> int:
        return len(read_warm_start(load(WARM, *overrides))["prefix"])

    assert num_known() == num_known("search.rungs=[5, 20]") == 6, "the same share, or no loss at that step"
    assert num_known("search.dev_sample=1.0") == num_known("search.dev_sample=0.5") == 5
    assert num_known("search.rungs=[5, 10]") == num_known("train.eval_every=10") == 5, "all of dev at step 10"
    assert num_known("search.rungs=[20]") == 6 and num_known("search.rungs=[20, 30]") == 5, "a sample at step 20"
    write_sweep(trials=[sampled])
    assert "its loss at a rung is over another share of dev" in refusal(WARM, "search.dev_sample=1.0")


def test_a_trial_fits_where_the_arm_could_have_it_whatever_is_searched_here_or_there() -> None:
    write_sweep()
    # Here mid_dim is fixed, the range is narrower, and each parametrisation has an arm of its own.
    flat = WARM.replace("mid_dim: {choice: [null, 512]}", "mid_dim: null").replace("1e-4, 1e-2", "1e-4, 1.5e-3")
    flat = flat.replace("    prefix_dropout: {choice: [0.0, 0.1], when: {mid_dim: [512]}}\n", "")
    network = (
        "  network: {method: prefix, preseqlen: 5, mid_dim: 512, init_token: null, prefix_dropout: {choice: [0.1, 0.2]}"
    )
    network += ", learning_rate: {log_uniform: [1e-4, 1e-3]}}\n"
    known = read_warm_start(load(flat.replace("  finetune:", f"{network}  finetune:")))
    assert [trial["values"] for trial in known["prefix"]] == [
        {"preseqlen": 5, "init_token": None, "learning_rate": 1e-3},
        {"preseqlen": 1, "init_token": None, "learning_rate": 1e-3},
    ]
    assert [trial["values"] for trial in known["network"]] == [{"prefix_dropout": 0.1, "learning_rate": 5e-4}]
    # An arm of a method that the other sweep lacks starts without evidence.
    lora = "  lora: {rank: 8, learning_rate: {log_uniform: [1e-4, 1e-2]}}\n"
    config = load(WARM.replace("  finetune:", f"{lora}  finetune:"))
    assert warm_start_text(read_warm_start(config), config)[1] == (
        "lora: runs/other has no trial of its method, so it starts without evidence."
    )


def test_another_base_task_recipe_or_space_is_refused_with_what_differs() -> None:
    place = "search.warm_start: runs/other"
    assert refusal() == f"{place}: is no sweep's folder; give one such as runs/NAME, from the working directory"
    write_sweep()
    assert refusal(WARM, "base=another", "task.num_dev=32").splitlines() == [
        f"{place}: base: a-hub-id there, another here; take a sweep of the same base",
        f"{place}: task.num_dev: 64 -> 32; take a sweep of the same task",
    ]
    none = f"{place}: none of its 5 trials of prefix fits arms.prefix:"
    assert refusal(WARM, "train.num_steps=60") == f"{none} num_steps is 40 there and 60 here"
    assert refusal(WARM, "arms.prefix.preseqlen={choice: [10, 20]}") == f"{none} preseqlen 5 is not searched here"
    assert read_warm_start(load(WARM, "train.eval_every=5"))["prefix"]  # it leaves the losses as they are
    write_sweep(base_digest="a", data_digest="b")
    facts = Provenance("a", 1, "fp32", "other data", 1, (), "cpu", 1)
    with pytest.raises(UserError, match="its data was another one under the same name"):
        read_warm_start(load(WARM), facts)
    write_sweep()  # it has ended before its table
    assert read_warm_start(load(WARM), facts)["prefix"]
    Path("runs/other/digests.json").write_text('{"base": "b", "task": "b", "train.precision": "fp32"}')
    with pytest.raises(UserError) as caught:
        read_warm_start(load(WARM), facts)
    assert [line.split()[3:5] for line in caught.value.problems] == [["base", "was"], ["data", "was"]]
    write_sweep(base_digest="a" * 40)
    assert read_warm_start(load(WARM), replace(facts, base_digest="b" * 40, data_digest="b"))[
        "prefix"
    ]  # another commit of the hub
    Path("runs/other/results.json").unlink()
    assert "runs/other has no results yet" in refusal()


def test_another_seeds_questions_about_the_same_document_are_evidence_and_those_about_another_text_are_not() -> None:
    Path("manual.md").write_text("The Eagle is cheap.\n")

    def about_document(text: str) -> str:
        return text.replace("name: e2e, num_dev: 64", "name: document, path: manual.md").replace("bleu", "rouge_l")

    other = write_sweep(about_document(OTHER), data_digest="one", base_digest="base")
    made = made_from(Document("manual", "The Eagle is cheap.\n"), other.task, base=other.base, precision="fp32", seed=1)
    folder = Path("runs/other/documents/manual")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"made_from": made}))
    config = load(about_document(WARM), "search.seed=7")
    facts: Any = SimpleNamespace(base_digest="base", data_digest="another")
    known = read_warm_start(config, facts)
    assert len(known["prefix"]) == 5
    hint = "runs/other asked other questions about the document (search.seed 1, here 7): its losses are a hint."
    assert warm_start_text(known, config)[-1] == hint
    facts.base_digest = "other"
    with pytest.raises(UserError, match="its base was another one under the same name"):
        read_warm_start(config, facts)
    Path("manual.md").write_text("The Eagle is closed.\n")
    assert "its document manual was another text" in refusal(about_document(WARM))


def test_a_sweep_whose_search_was_about_other_documents_is_refused_and_one_about_the_same_is_evidence() -> None:
    Path("texts").mkdir()
    for name in "abcdef":
        Path("texts", f"{name}.txt").write_text(f"The {name} is cheap.\n")

    def about_texts(text: str) -> str:
        return text.replace("name: e2e, num_dev: 64", "name: document, path: texts").replace("bleu", "rouge_l")

    write_sweep(about_texts(OTHER))
    Path("runs/other/searched_documents.json").write_text('["a", "b", "c", "d"]')
    four, few = (load(about_texts(WARM), f"search.documents={count}") for count in (4, 3))
    assert len(read_warm_start(four)["prefix"]) == 5, "4 is what the other sweep has found null to mean"
    said = "search.warm_start: runs/other: its trials are about a, b, c, d, here a, b, c; take a sweep of the same docu"
    with pytest.raises(UserError, match=said):
        read_warm_start(few)
    Path("texts/a.txt").rename("texts/z.txt")
    with pytest.raises(UserError, match="its trials are about a, b, c, d, here b, c, d, e"):
        read_warm_start(four)


def _study(folder: Path, arm: ArmConfig, known: list[KnownTrial] | None) -> ArmStudy:
    def read() -> list[KnownTrial]:
        assert known is not None, "the study has kept what is known"
        return known

    storage = open_storage(folder / "study.journal")
    return ArmStudy(storage, "small", arm, seed=1, num_startup=4, read_known=read)


def test_evidence_teaches_the_sampler_and_counts_as_no_trial_of_this_sweep_also_after_a_relaunch(
    tmp_path: Path,
) -> None:
    """The best rates of the other sweep lie near 1e-3; half of its trials have a network, which has its own cases."""
    cases = (
        "[{log_uniform: [1e-5, 1e-1], when: {mid_dim: [null]}}, {log_uniform: [1e-6, 1e-2], when: {mid_dim: [512]}}]"
    )
    rates = VALID.replace("{log_uniform: [1e-4, 1e-2]}", cases)
    grid = [10 ** (-4.9 + index / 10) for index in range(29)]
    trials = [
        _trial(n, 1 + abs(math.log10(rate) + 3), mid_dim=mid_dim, learning_rate=rate)
        if mid_dim is None
        else _trial(n, 3.0, mid_dim=mid_dim, prefix_dropout=0.0, learning_rate=rate)
        for n, (rate, mid_dim) in enumerate((rate, mid_dim) for rate in grid for mid_dim in (None, 512))
    ]
    write_sweep(rates.replace("name: small", "name: other"), trials)
    config = load(rates.replace("rungs: [10, 20]", "rungs: [10, 20], warm_start: runs/other"), "search.num_trials=20")
    arm, known = config.arm("prefix"), read_warm_start(config)["prefix"]
    assert len(known) == len(trials)
    study = _study(tmp_path, arm, known)
    first = [ask(study) for _ in range(2)]
    assert [proposal.number for proposal in first] == [0, 1]
    again = _study(tmp_path, arm, None)  # a relaunched driver, which need not find the other sweep
    proposals = [ask(again) for _ in range(12)]
    assert [proposal.adopted for proposal in proposals] == [True] * 2 + [False] * 10
    assert [proposal.values for proposal in proposals[:3]] == best_first(known, 20)
    assert [proposal.number for proposal in proposals] == list(range(12))
    drawn = [proposal.values for proposal in proposals[3:]]
    near = [values["mid_dim"] is None and 2e-4 < float(values["learning_rate"] or 0) < 5e-3 for values in drawn]
    assert sum(near) >= 6  # of 9; without evidence all are drawn at random, and one in six is expected there
    assert len(again.records()) == 12 and again.num_wanted() == 20 and again.best(3) == []
    assert parameter_importance(open_storage(tmp_path / "study.journal"), "small", arm, (10, 20)) is None
    stored = again._study.get_trials()
    assert len([trial for trial in stored if trial.state is not TrialState.WAITING]) == 12


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_other_samplers_learn_from_evidence_too(tmp_path: Path, sampler: str) -> None:
    """The other sweep's best trials lie near a rate of 1e-3 and a dropout of 0.1, in a corner of the space."""
    space = "learning_rate: {log_uniform: [1e-4, 1e-1]}\n    prefix_dropout: {uniform: [0.0, 0.9]}\n"
    text = VALID.split("  prefix:")[0] + "  prefix:\n    preseqlen: {choice: [5]}\n    mid_dim: null\n    "
    text += "init_token: null\n    "
    text += space + "  finetune:" + VALID.split("  finetune:")[1]
    text = text.replace("rungs: [10, 20]", f"rungs: [10, 20], sampler: {sampler}")
    trials = []
    for number in range(16):
        rate, dropout = 10 ** (-4 + number % 4), (number // 4) / 4
        loss = 1 + (math.log10(rate) + 3) ** 2 + (3 * (dropout - 0.1)) ** 2
        trials.append(_trial(number, loss, preseqlen=5, learning_rate=rate, prefix_dropout=dropout))
    write_sweep(text.replace("name: small", "name: other"), trials)
    config = load(text.replace("rungs: [10, 20]", "rungs: [10, 20], warm_start: runs/other"), "search.num_trials=4")
    storage, known = open_storage(tmp_path / "study.journal"), read_warm_start(config)["prefix"]
    study = ArmStudy(
        storage,
        "small",
        config.arm("prefix"),
        seed=1,
        num_startup=4,
        sampler=config.search.sampler,
        read_known=lambda: known,
    )
    drawn = [ask(study).values for _ in range(4)][1:]
    assert all(float(values["prefix_dropout"] or 0) < 0.7 for values in drawn)
    assert sum(1e-4 < float(values["learning_rate"] or 0) < 1e-2 for values in drawn) >= 2
