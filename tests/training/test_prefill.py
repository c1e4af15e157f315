"""A source run once with all its references behind it scores as each pair by itself."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.shared_prompts import lengths_run
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 0.02}  # of a loss in nats
METHODS: dict[str, AnyTrial] = {
    "short": PrefixTrial(preseqlen=2, mid_dim=None, init_token="restaurant"),
    "long": PrefixTrial(preseqlen=9, mid_dim=8, init_token=None, prefix_dropout=0.2),
    "infix": PrefixTrial(preseqlen=3, mid_dim=None, init_token="restaurant", format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=5),
    "lora": LoraTrial(rank=2, dropout=0.3),
    "finetune": FinetuneTrial(),
}
SOURCES = (
    "name : The Eagle | food : Chinese",
    "name : The Mill",
    "name : Aromi | Type : restaurant | area : city centre",
)
EXAMPLES = [
    Example(source, f"{source[7:]} is {words}.")
    for words in ("open", "cheap and family friendly", "in the riverside area")
    for source in SOURCES[: 1 if words == "open" else 2]
] + [Example(SOURCES[2], "Aromi has one reference.")]


def _packed(base: Base, methods: dict[str, AnyTrial], *, token_budget: int | None = None) -> tuple[Pack, list[Row]]:
    """These methods, moved from where they start by two steps of training."""
    rows = encode(EXAMPLES, make_template(base, TaskConfig(name="e2e")))
    pack = Pack(base, rows, pad_id=0, token_budget=token_budget)
    for key, method in methods.items():
        config = TrialConfig(arm=key, method=method, num_steps=4, batch_size=3, learning_rate=1e-2, warmup_steps=0)
        pack.admit(key, config, Seeds.derive(1, 0))
    for _ in range(2):
        pack.step(methods)
    return pack, rows


def _one_by_one(pack: Pack, keys: dict[str, AnyTrial], rows: list[Row]) -> dict[str, float]:
    """The losses where no row has another one beside it."""
    losses = [(row.num_targets, pack.evaluate(keys, [row])) for row in rows]
    count = sum(targets for targets, _ in losses)
    return {key: sum(targets * own[key] for targets, own in losses) / count for key in keys}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_source_once_with_its_references_scores_as_pair_by_pair(
    make_base: MakeBase, name: str, dtype: torch.dtype
) -> None:
    pack, rows = _packed(make_base(name, dtype), METHODS)
    together, apart = pack.evaluate(METHODS, rows), _one_by_one(pack, METHODS, rows)
    assert together == pytest.approx(apart, abs=TOLERANCE[dtype])
    assert len({round(loss, 3) for loss in together.values()}) == len(METHODS)  # it matters which method is seen


def test_it_does_so_where_few_sources_fit_the_budget(make_base: MakeBase) -> None:
    pack, rows = _packed(make_base("llama", torch.float64), METHODS, token_budget=40)
    assert pack.evaluate(METHODS, rows) == pytest.approx(_one_by_one(pack, METHODS, rows), abs=1e-10)


def test_an_encoder_decoder_runs_every_pair_whole(make_base: MakeBase) -> None:
    methods = {key: METHODS[key] for key in ("short", "lora")}
    pack, rows = _packed(make_base("bart", torch.float64), methods)
    assert pack.evaluate(methods, rows) == pytest.approx(_one_by_one(pack, methods, rows), abs=1e-10)
    assert lengths_run(rows).encoder == sum(len(row.encoder_ids) for row in rows) / len(rows)


def test_the_tokens_that_are_run_are_those_that_are_counted(tiny_gpt2: Base) -> None:
    pack, rows = _packed(tiny_gpt2, {"short": METHODS["short"]}, token_budget=1)  # a budget that leaves no padding,
    pack.layout.knows_lines = False  # and side by side rows have no fillers
    sizes: list[int] = []
    pack.base.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    pack.evaluate(["short"], rows)
    prompts = [row.ids[: row.num_prompt] for row in rows]
    repeated = sum((len(prompt) - 1) * (prompts.count(prompt) - 1) for prompt in set(prompts))
    assert repeated > 0
    assert sum(sizes) == sum(row.num_inputs for row in rows) - repeated
    assert lengths_run(rows).decoder * len(rows) == pytest.approx(sum(sizes))


def test_a_row_whose_prompt_is_one_token_is_run_whole() -> None:
    rows = [Row((1, 2, 3), 1), Row((1, 4), 1)]
    assert lengths_run(rows).decoder == 1.5
    assert lengths_run([replace(row, num_prompt=1) for row in rows]).targets == 1.5
