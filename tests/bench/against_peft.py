"""Training step, validation and decoding against PEFT's prefix tuning on the same model, rows and weights.

    python tests/bench/against_peft.py      # 6-layer GPT-2 shape (d 384), E2E, fp32, one thread: minutes
    python tests/bench/against_peft.py --model gpt2 --preseqlen 200 --precision bf16
    python tests/bench/against_peft.py --model gpt2-medium --device cuda --precision bf16

Arms run in turn in one process, `--rounds` times; the table gives medians and the spread of the ratio to PEFT. The
prefix starts from the same tensors in every arm, and the losses are printed, so that nobody wins by training less.
Weights are random: speed does not depend on them. Imports nothing of Ray, Optuna or MLflow.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from prefixray.base import wrap_model
from prefixray.batching import Row
from prefixray.config import PrefixTrial, TaskConfig, TrialConfig
from prefixray.logs import quieten
from prefixray.methods.prefix import Prefix
from prefixray.pack import Pack, Seeds
from prefixray.tasks import load_task

MODELS = {"6-layer": (6, 384, 6), "gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16)}  # layers, width, heads
VOCABULARY, EOS = 50257, 50256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MID_DIM = 512
LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    rows: Sequence[Row]
    batch_size: int
    preseqlen: int
    device: torch.device

    def batch(self, step: int) -> list[Row]:
        """The rows of a step of a trial, the same in every arm."""
        start = step * self.batch_size % (len(self.rows) - self.batch_size)
        return list(self.rows[start : start + self.batch_size])


class PeftArm:
    """PEFT's prefix tuning with its projection, and the plain training step around it."""

    def __init__(self, model: PreTrainedModel, setting: Setting) -> None:
        self._setting = setting
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=setting.preseqlen,
            prefix_projection=True,
            encoder_hidden_size=MID_DIM,
        )
        self.model = get_peft_model(copy.deepcopy(model), config)
        self.encoder = self.model.prompt_encoder["default"]
        self.encoder.float()
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def start_from(self, prefix: Prefix) -> None:
        """Take over the tensors of our network: PEFT's has the same layers in the same order."""
        network = prefix.sites["decoder"].network
        pairs = zip(self.encoder.parameters(), network.parameters(), strict=True)
        with torch.no_grad():
            for theirs, ours in pairs:
                theirs.copy_(ours)

    def step(self, step: int) -> float:
        """One update; the loss."""
        loss = self._loss(self._setting.batch(step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def validate(self, rows: Sequence[Row]) -> float:
        """Mean loss over the target tokens, in batches in the order of the file, as an evaluation loop has them."""
        total = count = 0.0
        with torch.no_grad():
            for start in range(0, len(rows), self._setting.batch_size):
                batch = rows[start : start + self._setting.batch_size]
                targets = sum(row.num_targets for row in batch)
                total += float(self._loss(batch).detach()) * targets
                count += targets
        return total / count

    def _loss(self, rows: Sequence[Row]) -> Tensor:
        device = self._setting.device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True, padding_value=EOS)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row.ids)) for row in rows], batch_first=True)
        labels = ids.masked_fill(mask == 0, -100)
        for own, row in zip(labels, rows, strict=True):
            own[: row.num_prompt] = -100
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.model.base_model.dtype == torch.bfloat16):
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            loss: Tensor = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss
        return loss


class PackArm:
    """A pack of prefixes that start alike and see the same rows."""

    def __init__(self, model: PreTrainedModel, setting: Setting, num_trials: int) -> None:
        base = wrap_model(copy.deepcopy(model), None, name="random", digest="")  # type: ignore[arg-type]
        self.pack = Pack(base, setting.rows, pad_id=EOS)
        self.pack._next_rows = lambda member: setting.batch(member.step)  # type: ignore[method-assign]
        method = PrefixTrial(preseqlen=setting.preseqlen, mid_dim=MID_DIM, init_token=None)
        self.keys = [f"trial/{number}" for number in range(num_trials)]
        recipe = {"num_steps": 10**6, "schedule": "constant", "batch_size": setting.batch_size}
        config = TrialConfig(arm="prefix", learning_rate=LEARNING_RATE, method=method, **recipe)  # type: ignore[arg-type]
        for key in self.keys:
            self.pack.admit(key, config, Seeds.derive(1, 0))

    @property
    def prefix(self) -> Prefix:
        """The first trial's."""
        method = self.pack.members[self.keys[0]].method
        assert isinstance(method, Prefix)
        return method

    def step(self, step: int) -> float:
        """One update of each; the first's loss."""
        return self.pack.step(self.keys)[self.keys[0]].loss

    def validate(self, rows: Sequence[Row]) -> float:
        """The first trial's dev loss; the others' are computed with it."""
        return self.pack.evaluate(self.keys, rows)[self.keys[0]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="6-layer", help="the shape (6-layer)")
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help="of the base, in all arms (fp32)")
    parser.add_argument("--preseqlen", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 4, 16], help="trials per pack (1 4 16)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the arms run in turn (5)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    model = _model(options.model, DTYPES[options.precision]).to(options.device)
    setting = Setting(_rows(200), options.batch_size, options.preseqlen, torch.device(options.device))
    peft = PeftArm(model, setting)
    packs = {count: PackArm(model, setting, count) for count in options.packs}
    peft.start_from(packs[options.packs[0]].prefix)
    arms: dict[str, tuple[PeftArm | PackArm, int]] = {"PEFT": (peft, 1)}
    arms |= {f"pack of {count}": (pack, count) for count, pack in packs.items()}
    what = f"{options.model}, {options.precision}, batch {options.batch_size}, preseqlen {options.preseqlen}"
    print(f"{what}, {_device(options.device)}")
    _table("training step", arms, setting, options.rounds)
    _table("validation, 60 rows", arms, setting, options.rounds, dev=_rows(260)[200:])


def _table(
    title: str,
    arms: dict[str, tuple[PeftArm | PackArm, int]],
    setting: Setting,
    rounds: int,
    dev: Sequence[Row] | None = None,
) -> None:
    """Run the arms in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    losses: dict[str, list[float]] = {name: [] for name in arms}
    targets = 0
    for step in range(rounds + 1):
        rows = setting.batch(step) if dev is None else dev
        targets = sum(row.num_targets for row in rows)
        for name, (arm, count) in arms.items():
            run: Callable[[], float] = (
                (lambda a=arm, s=step: a.step(s)) if dev is None else (lambda a=arm: a.validate(dev))
            )
            spent, loss = _timed(run, setting.device)
            losses[name].append(loss)
            if step:
                seconds[name].append(spent / count)
    print(f"\n{title}: seconds per trial, ratio to PEFT [least, most], target tokens per second, first and last loss")
    for name in arms:
        ratios = [theirs / ours for theirs, ours in zip(seconds["PEFT"], seconds[name], strict=True)]
        middle, first, last = statistics.median(seconds[name]), losses[name][0], losses[name][-1]
        spread = f"{statistics.median(ratios):5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name:<11} {middle:8.3f}  {spread:<20} {targets / middle:8.0f}   {first:.4f} {last:.4f}")


def _timed(run: Callable[[], float], device: torch.device) -> tuple[float, float]:
    """CPU seconds of this process, which other processes do not lengthen; on a GPU the clock's."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    value = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started, value


def _model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    layers, width, heads = MODELS[name]
    torch.manual_seed(1)
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads, **drops))
    model.requires_grad_(False)
    return model.to(dtype).train(False)  # type: ignore[no-any-return]


def _rows(count: int) -> list[Row]:
    """E2E pairs with the original's template at GPT-2's usual 4.3 letters per token, the ids drawn by chance."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for example in load_task(TaskConfig(name="e2e", num_train=count, num_dev=1, num_test=1)).train:
        lengths = [round(len(text) / 4.3) + 2 for text in (example.source, example.target)]
        source, target = (torch.randint(0, EOS, (length,), generator=draw).tolist() for length in lengths)
        rows.append(Row((*source, EOS, *target, EOS), len(source) + 1))
    return rows


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else "one CPU thread"


if __name__ == "__main__":
    main()
