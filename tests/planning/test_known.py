"""What is found out without weights, without the base, and without the data."""

from collections.abc import Mapping
from pathlib import Path

from support.small_plan import EXAMPLES, FILE

from prefixray.batching.lengths import Lengths
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.model.base import load_base, outline_base
from prefixray.planning.estimate import count_sweep


def test_a_base_is_known_without_its_weights(base_folders: Mapping[str, Path], tmp_path: Path) -> None:
    for name, folder in base_folders.items():
        bare = tmp_path / name
        bare.mkdir()
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (bare / file.name).write_bytes(file.read_bytes())
        outline = outline_base(str(bare))
        assert outline.shape == load_base(str(folder)).shape
        assert outline.device.type == "meta"


def test_tokens_are_counted_where_tokenizer_and_data_are_here(config: SweepConfig) -> None:
    known = count_sweep(config).known
    tokenizer = known.base.tokenizer  # type: ignore[union-attr]
    targets = [len(tokenizer(f" {one['target']} ", add_special_tokens=False).input_ids) + 1 for one in EXAMPLES]
    assert known.train.targets == sum(targets) / len(targets)
    assert (known.num_dev, known.num_test, known.missing) == (2, 2, ())


def test_without_the_data_tokens_are_an_upper_bound(file: Path, base_folders: Mapping[str, Path]) -> None:
    text = FILE.format(base=base_folders["bart"], data="x").replace(
        "name: custom, train: x, dev: x, test: x", "name: xsum"
    )
    file.write_text(text.replace("num_beams: 2", "num_beams: 2, metric: test/rouge_l"))
    plan = count_sweep(load_sweep(file))
    assert plan.known.train == Lengths(512, 129, 129)
    assert "upper bound" in plan.known.lengths_from and plan.known.num_test == 11_334
    assert plan.costs[0].decode is not None


def test_questions_about_a_document_are_no_longer_than_the_base_writes_them(
    file: Path, base_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "manual.md").write_text("The Eagle is cheap.\n")
    task = f"name: document, path: {tmp_path / 'manual.md'}"
    text = FILE.format(base=base_folders["llama"], data="x").replace("name: custom, train: x, dev: x, test: x", task)
    file.write_text(text.replace("num_beams: 2", "num_beams: 2, metric: test/rouge_l"))
    assert count_sweep(load_sweep(file)).known.train == Lengths(0, 50 + 129, 129)
    file.write_text(file.read_text().replace(task, f"{task}, max_source_tokens: 32"))
    assert count_sweep(load_sweep(file)).known.train == Lengths(0, 32 + 129, 129)
