"""What is decoded is written, read and scored; and decoding again from an artifact gives the same hypotheses."""

import json
from pathlib import Path

import pytest
import torch
from support.tiny_bases import MakeBase

from prefixray import decode
from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, PrefixTrial, TrialConfig
from prefixray.data import Sourced, load_task
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.evaluate import Tuned
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.metrics import score
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.results.artifacts import Found, best_artifact, best_run, find_artifact
from prefixray.results.hypotheses import read_hypotheses, score_all, write_hypotheses
from prefixray.results.record import ArmResult, Results

SOURCED = (
    Sourced("name : The Mill", ("The Mill is a pub.", "There is The\nMill.")),
    Sourced("name : The Eagle", ("The Eagle.",)),
)
ARMS: dict[str, AnyTrial] = {
    "prefix": PrefixTrial(preseqlen=4, mid_dim=8, init_token=None),
    "embedding": PrefixTrial(preseqlen=4, mid_dim=8, init_token=None, prefix_mode="embedding"),
    "infix": PrefixTrial(preseqlen=4, mid_dim=8, init_token=None, format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=3),
    "adapters": AdapterTrial(bottleneck=3, design=2),
    "finetune": FinetuneTrial(),
    "top": FinetuneTrial(top_layers=1, tune_embeddings=False),
}
DECODING = DecodingSettings(num_beams=3, max_new_tokens=10, batch_size=2)


def test_three_files_are_written_as_the_challenges_scorers_read_them(tmp_path: Path) -> None:
    write_hypotheses(tmp_path / "new", "test", ["The Mill\r\nis Café.", ""], SOURCED)
    contents = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()}
    assert contents == {
        "test.hyp": "The Mill is Café.\n\n",
        "test.ref": "The Mill is a pub.\nThere is The Mill.\n\nThe Eagle.\n",
        "test.src": "name : The Mill\nname : The Eagle\n",
    }
    assert read_hypotheses(tmp_path / "new", "test") == ["The Mill is Café.", ""]


def test_hypotheses_that_were_not_written_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dev\.hyp: no such file; decode the dev split first"):
        read_hypotheses(tmp_path, "dev")


def test_hypotheses_are_scored_against_all_references_of_their_source() -> None:
    scores = score_all(["There is The\nMill.", "The Eagle."], SOURCED, ("bleu", "rouge_l_coco"))
    assert list(scores) == ["bleu", "rouge_l_coco"]
    assert scores["rouge_l_coco"].corpus() == pytest.approx(100)


def test_in_a_challenges_form_each_row_of_a_source_counts_with_its_own_references() -> None:
    """The first source stands in two rows of the file; a resampling by source draws both."""
    references = (("The Mill is a pub.", "There is The-Mill!"), ("It is a pub called The Mill.",), ("The Eagle.",))
    merged = (Sourced("a", (*references[0], *references[1]), rows=(2, 1)), Sourced("b", references[2]))
    hypotheses = ["There is The Mill pub.", "The Eagle!"]
    found = score_all(hypotheses, merged, ("bleu", "ter"), "words")
    for metric, scored in found.items():
        by_row = score(metric, [hypotheses[0], *hypotheses], references, "words")
        assert scored.corpus() == pytest.approx(by_row.corpus(), abs=1e-9)
        assert scored.statistics[0] == pytest.approx(by_row.statistics[:2].sum(0), abs=1e-9)
        assert scored.signature.endswith("|texts:words")
    assert found["ter"].corpus() != pytest.approx(score_all(hypotheses, merged, ("ter",))["ter"].corpus())


def test_the_best_prefix_is_the_run_of_a_sweep_that_is_meant() -> None:
    arms = [_arm("short", "prefix", 50.0), _arm("long", "prefix", 60.0), _arm("lora", "lora", 70.0), _arm("untuned")]
    assert best_run({"metric": "bleu", "arms": arms}, None) == "final/long-1"
    assert best_run({"metric": "ter", "arms": arms}, None) == "final/short-1"
    assert best_run({"metric": "bleu", "arms": arms[2:]}, None) == "final/lora-1"
    assert best_run({"metric": "bleu", "arms": arms}, "lora") == "final/lora-1"
    with pytest.raises(UserError, match="--arm: untuned: no tuned arm of this sweep; they are short, long, lora"):
        best_run({"metric": "bleu", "arms": arms}, "untuned")


@pytest.mark.parametrize("arm", ARMS)
def test_decoding_again_from_a_sweep_gives_the_same_hypotheses(
    arm: str, tiny_base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hypotheses = _finish_sweep(tmp_path, arm, tiny_base)
    results = json.loads((tmp_path / "results.json").read_text())
    metrics = ["chrf", "bleu", "perplexity", "nowhere:score"]
    (tmp_path / "results.json").write_text(json.dumps(results | {"metrics": metrics}))
    assert decode.main([str(tmp_path), "--arm", arm]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "final" / f"{arm}-1" / "decoded"
    assert "2 of 2 hypotheses are those of the final stage" in printed
    assert "\nchrF " in printed and "  BLEU " in printed and "perplexity" not in printed, "its sweep's metrics"
    assert "\nnot scored: " in printed and "nowhere" in printed, "nothing is lost for that"
    assert f"{out}/test.hyp" in printed
    assert read_hypotheses(out, "test") == hypotheses


def test_it_decodes_with_the_final_stages_threads_and_says_on_what_hypotheses_that_differ_depend(
    make_base: MakeBase, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded beside the hypotheses; before that was, in results.json; else as many as a worker has."""
    _finish_sweep(tmp_path, "prefix", make_base("gpt2", torch.bfloat16))
    beside, results = tmp_path / "final" / "prefix-1" / "test.json", tmp_path / "results.json"
    monkeypatch.setattr(decode, "num_cpus", lambda: 4)

    def decoded_with(*options: str) -> str:
        assert decode.main([str(tmp_path), *options]) == 0
        assert torch.get_num_threads() == 1, "as before"
        threads, _, rest = capsys.readouterr().out.partition("in bf16 on ")[2].partition(" of the CPU")
        assert "2 of 2 hypotheses are those of the final stage\n" in rest
        return threads

    assert decoded_with() == "2 threads"
    results.write_text(json.dumps({**json.loads(results.read_text()), "machine": {"device": "cpu", "num_threads": 3}}))
    assert decoded_with() == "3 threads"
    beside.write_text(json.dumps({"device": "cpu", "num_threads": 1}))
    assert decoded_with() == "1 thread" and decoded_with("--threads", "2") == "2 threads"
    beside.write_text(json.dumps({"device": "cuda", "num_threads": 1}))
    assert decoded_with() == "2 threads"
    beside.write_text(json.dumps({"device": "cpu", "num_threads": 9}))
    assert decoded_with("--batch-size", "2") == "4 threads"

    write_hypotheses(beside.parent, "test", ["another", "text"], SOURCED)
    assert decode.main([str(tmp_path)]) == 0
    told = (
        "0 of 2 hypotheses are those of the final stage; in bf16 they depend on the device, --threads and the batches"
    )
    assert told in capsys.readouterr().out


def test_a_bare_artifact_is_decoded_on_the_task_that_it_names(
    tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hypotheses = _finish_sweep(tmp_path, "prefix", tiny_gpt2)
    artifact, out = tmp_path / "final" / "prefix-1" / "artifact", tmp_path / "elsewhere"
    assert decode.main([str(artifact), "--out", str(out)]) == 0
    assert read_hypotheses(out, "test") == hypotheses
    assert decode.main([str(artifact), "--out", str(out), "--split", "dev", "--max-new-tokens", "1"]) == 0
    assert len(read_hypotheses(out, "dev")) == 1
    assert "dev, 1 sources" in capsys.readouterr().out


def test_a_final_runs_own_folder_is_decoded_and_scored_as_its_sweep_is(
    tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _finish_sweep(tmp_path, "prefix", tiny_gpt2)
    artifact, results = tmp_path / "final" / "prefix-1" / "artifact", tmp_path / "results.json"
    sweep = {"metrics": ["chrf"], "evaluation": "paper", "machine": {"device": "cpu", "num_threads": 3}}
    results.write_text(json.dumps({**json.loads(results.read_text()), **sweep}))
    found = find_artifact(str(artifact))
    assert found == best_artifact(tmp_path) and (found.metrics, found.evaluation) == (["chrf"], "paper")
    assert decode.main([str(artifact), "--arm", "prefix"]) == 2
    assert "--arm: chooses in a sweep, and " in capsys.readouterr().err
    results.unlink()
    assert find_artifact(str(artifact)) == Found(artifact, tmp_path)


def test_what_cannot_be_decoded_is_said_without_a_traceback(
    tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode.main([str(tmp_path / "nothing")]) == 2
    _finish_sweep(tmp_path, "prefix", tiny_gpt2)
    assert decode.main([str(tmp_path), "--arm", "prefx"]) == 2
    assert "they are prefix" in capsys.readouterr().err
    (tmp_path / "final" / "prefix-1" / "artifact" / "prefix.safetensors").write_bytes(b"")
    assert decode.main([str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({"search": []}))
    assert decode.main([str(tmp_path)]) == 2
    assert "no final stage yet; its trials have left no artifact, as in every search over" in capsys.readouterr().err
    (tmp_path / "trials" / "prefix" / "0" / "artifact").mkdir(parents=True)
    assert decode.main([str(tmp_path)]) == 2
    assert "no final stage yet; decode one of its trials: " in capsys.readouterr().err


def _finish_sweep(folder: Path, arm: str, base: Base) -> list[str]:
    """A sweep's folder with one arm that was moved from its start and decoded; its hypotheses."""
    lines = [
        {"source": f"name : The {name}", "target": f"The {name} is a pub."} for name in ("Mill", "Eagle", "Vaults")
    ]
    for split, part in (("train", lines), ("dev", lines[2:]), ("test", lines[:2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    task = TaskConfig(name="custom", **{split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")})
    template = make_template(base, task)
    method = build_method(ARMS[arm], base, Binder.of(base.model).record, init_seed=1, dropout_seed=1)
    with torch.no_grad():
        for parameter in (one for one in method.parameters() if one.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    sources = load_task(task).test_sources
    hypotheses = Tuned(base, method, template, DECODING).generate([one.source for one in sources])
    config = TrialConfig(arm=arm, learning_rate=1e-3, num_steps=3, method=ARMS[arm])
    meta = artifact_meta(base, config, task=task, template=template.record(), decoding=DECODING.model_dump())
    save_artifact(folder / "final" / f"{arm}-1" / "artifact", method.artifact(), meta)
    write_hypotheses(folder / "final" / f"{arm}-1", "test", hypotheses, sources)
    (folder / "sweep.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps(_results(_arm(arm, ARMS[arm].method, 50.0))))
    return hypotheses


def _arm(name: str, method: str | None = None, bleu: float = 1.0) -> ArmResult:
    score = {"value": bleu, "low": bleu, "high": bleu}
    seeds = [{"seed": seed, "scores": {}, "dev_loss": 1.5, "folder": f"final/{name}-{seed}"} for seed in (2, 1)]
    counts = {"trained_parameters": 1, "stored_parameters": 1, "num_trials": 1, "minutes": 0.1, "searched": True}
    none = {"difference": None, "p": None, "p_holm": None, "sd": {}}
    both = {"bleu": score, "ter": score}
    return {"arm": name, "method": method, "config": {}, "seeds": seeds, "scores": both, **counts, **none}  # type: ignore[typeddict-item]


def _results(arm: ArmResult) -> Results:
    empty = dict.fromkeys(Results.__required_keys__)
    return {**empty, "metric": "bleu", "search": [], "arms": [arm], "decoding": DECODING.model_dump(), "machine": {}}  # type: ignore[typeddict-item]
