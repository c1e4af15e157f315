"""A sweep over a folder of documents as a user runs it: self-study, search, a prefix for each document, its use."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.small_documents import DOCUMENTS, write_documents
from support.sweep_process import DrivenSweep, end_all

from prefixray.artifacts.store import load_artifact
from prefixray.serving.names import find_models

pytestmark = [pytest.mark.ray, pytest.mark.sweeps]

SWEEP = """
name: small
base: {base}
task:
  {{name: document, path: texts, chunk_tokens: 40, max_target_tokens: 12, separator: "\\n",
   num_questions: {{train: 6, dev: 2, test: 2}}, prompts: ["Ask about {{passage}}"]}}
train: {{batch_size: 2, num_steps: 6, precision: fp32, objective: distill}}
arms:
  prefix:
    {{preseqlen: 2, mid_dim: null, init_token: null, init_from: document, learning_rate: {{log_uniform: [1e-3, 1e-1]}}}}
  lora: {{rank: 2, learning_rate: 1e-2}}
search: {{num_trials: 2, rungs: [3], documents: 2, seed: 3}}
final: {{metric: test/rouge_l, num_beams: 1, max_new_tokens: 8}}
tracking: {{mlflow: null}}
"""


@dataclass(frozen=True)
class Finished:
    """A sweep that has ended, and what its driver printed."""

    sweep: DrivenSweep
    printed: str

    @property
    def results(self) -> Path:
        return self.sweep.results

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "prefixray", *words]
        return subprocess.run(command, cwd=self.sweep.folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base_folders: Mapping[str, Path]) -> Iterator[Finished]:
    sweep = DrivenSweep(tmp_path_factory.mktemp("documents"), base_folders["llama"])
    write_documents(sweep.folder / "texts")
    (sweep.folder / "small.yaml").write_text(SWEEP.format(base=sweep.base))
    yield Finished(sweep, _finish(sweep))
    end_all()


def _finish(sweep: DrivenSweep) -> str:
    output, _ = sweep.start().communicate(timeout=900)
    return str(output)


def _results(finished: Finished) -> dict[str, object]:
    content: dict[str, object] = json.loads((finished.results / "results.json").read_text())
    return content


def test_a_search_trains_on_its_documents_and_the_winner_on_all(finished: Finished) -> None:
    assert "untuned" in finished.printed and "Traceback" not in finished.printed, finished.printed
    results = json.loads((finished.results / "results.json").read_text())
    assert len(results["search"]) == 2 and results["num_sources"] == 6
    arms = {arm["arm"]: arm for arm in results["arms"]}
    for arm in ("prefix", "lora"):
        (seed,) = arms[arm]["seeds"]
        assert list(seed["documents"]) == list(DOCUMENTS) and list(arms[arm]["groups"]) == list(DOCUMENTS)
        for name, run in seed["documents"].items():
            assert run["folder"].endswith(f"-1@{name}")
            _, record = load_artifact(finished.results / run["folder"] / "artifact")
            assert record["document"] == name
            assert len((finished.results / run["folder"] / "test.hyp").read_text().splitlines()) == 2
        means = [run["scores"]["rouge_l"] for run in seed["documents"].values()]
        assert seed["scores"]["rouge_l"] == pytest.approx(sum(means) / 3)
    trial = finished.results / "trials" / "prefix" / str(results["search"][0]["number"])
    assert not (trial / "artifact").exists()
    assert json.loads((finished.results / "searched_documents.json").read_text()) == ["aromi", "eagle"]


def test_a_document_that_comes_later_is_trained_by_the_same_command_and_nothing_else_is(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.results.glob("final/*/artifact/*")}
    trials = {path: path.read_text() for path in finished.results.glob("trials/*/*/result.json")}
    (finished.sweep.folder / "texts" / "zizzi.txt").write_text("Zizzi serves French food by the river.\n")
    printed = _finish(finished.sweep)
    assert "self-study: the base writes questions about zizzi, and answers them" in printed, printed
    after = {path: path.stat().st_mtime_ns for path in finished.results.glob("final/*/artifact/*")}
    assert {path: after[path] for path in before} == before
    assert {path.parent.parent.name.partition("@")[2] for path in after.keys() - before.keys()} == {"zizzi"}
    assert {path: path.read_text() for path in finished.results.glob("trials/*/*/result.json")} == trials
    (finished.sweep.folder / "texts" / "a first one.txt").write_text("The Mill is cheap.\n")
    refused = _finish(finished.sweep)
    (finished.sweep.folder / "texts" / "a first one.txt").unlink()
    assert "trials have trained on aromi, eagle, and now a first one, aromi would be the first" in refused


def test_a_request_names_its_document(finished: Finished) -> None:
    models = find_models([str(finished.results)]).folders
    best = finished.results / "final" / models["rice boat"].parent.name / "artifact"
    assert models["rice boat"] == best and "prefix" not in models and best.parent.name.startswith("prefix-")
    assert {"aromi", "eagle", "prefix@aromi", "lora@eagle", "final/lora-0-1@rice boat"} <= models.keys()
    refused = finished.run("decode", "runs/small")
    assert refused.returncode == 2 and "--document: name one of" in refused.stderr
    assert "they are aromi, eagle, rice boat" in refused.stderr
    decoded = finished.run("decode", "runs/small", "--arm", "lora", "--document", "rice boat")
    assert decoded.returncode == 0, decoded.stderr
    assert "2 of 2 hypotheses are those of the final stage" in decoded.stdout
