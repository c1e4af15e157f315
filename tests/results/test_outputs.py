"""The file of all outputs: what is written is read again."""

from pathlib import Path

from support.example_results import example, finished_sweep

from prefixray.results.outputs import read_outputs, write_outputs


def test_texts_longer_than_pythons_limit_of_a_field_are_read_again(tmp_path: Path) -> None:
    every = [example(number) for number in range(3)]
    every[1]["source"], every[2]["references"] = "x" * 200_000, ["y" * 100_000, "z" * 100_000]
    write_outputs(tmp_path / "outputs.csv", every, "bleu")
    assert read_outputs(tmp_path / "outputs.csv", finished_sweep()) == every


def test_a_lone_carriage_return_ends_no_row(tmp_path: Path) -> None:
    results = finished_sweep()
    (example,) = results["examples"][:1]
    example["source"] = "name : A\rfood : B"
    write_outputs(tmp_path / "outputs.csv", [example], results["metric"])
    assert '"name : A\rfood : B"' in (tmp_path / "outputs.csv").read_bytes().decode(), "quoted by every Python"
    (read,) = read_outputs(tmp_path / "outputs.csv", results)
    assert read["source"] == example["source"] and read.get("scores") == example.get("scores")


def test_arms_may_be_called_like_the_files_own_columns(tmp_path: Path) -> None:
    results, every = finished_sweep(), [example(number) for number in range(3)]
    for old, new in {"prefix": "source", "finetune": "references"}.items():
        next(arm for arm in results["arms"] if arm["arm"] == old)["arm"] = new
        for one in every:
            one["outputs"][new], one["scores"][new] = one["outputs"].pop(old), one["scores"].pop(old)
    write_outputs(tmp_path / "outputs.csv", every, "bleu")
    assert read_outputs(tmp_path / "outputs.csv", results) == every


def test_a_sweep_without_the_file_has_no_outputs(tmp_path: Path) -> None:
    assert read_outputs(tmp_path / "outputs.csv", finished_sweep()) == []
