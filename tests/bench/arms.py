"""The arms of the benchmark: a pack of ours, and PEFT's prefix tuning or LoRA with the plain training step around it.

Both take the same rows and, on decoder-only bases, start from the same tensors. PEFT's prefix for an encoder-decoder
has another form (the decoder's own attention alone, layers tied in pairs), so there the two start apart; and so they do
where several heads share their keys, since PEFT's network is narrower there. LoRA's updates start at zero in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import EOS
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.batching.rows import Row
from prefixray.config.trials import AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.methods.prefix import Prefix
from prefixray.model.base import wrap_model
from prefixray.model.shape import Shape
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

METHODS = ("prefix", "lora")
MID_DIM = 512
RANK = 4
LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    rows: Sequence[Row]
    batch_size: int
    preseqlen: int
    device: torch.device
    method: str = "prefix"  # one of METHODS

    def batch(self, step: int) -> list[Row]:
        """The rows of a step of a trial, the same in every arm."""
        start = step * self.batch_size % (len(self.rows) - self.batch_size)
        return list(self.rows[start : start + self.batch_size])


class PeftArm:
    """PEFT's prefix tuning with its projection, or its LoRA, on a model of its own."""

    def __init__(self, model: PreTrainedModel, setting: Setting, *, autocast: bool = True) -> None:
        self._setting = setting
        self._autocast = autocast  # where the model is bf16; without it the whole forward is
        self._is_pair = model.config.is_encoder_decoder
        task = "SEQ_2_SEQ_LM" if self._is_pair else "CAUSAL_LM"
        if setting.method == "lora":
            self.model: Any = get_peft_model(model, LoraConfig(task_type=task, r=RANK, lora_alpha=RANK))
            self.trained = [p for p in self.model.parameters() if p.requires_grad]
        else:
            config = PrefixTuningConfig(
                task_type=task,
                num_virtual_tokens=setting.preseqlen,
                prefix_projection=True,
                encoder_hidden_size=MID_DIM,
            )
            self.model = get_peft_model(model, config)
            self.encoder = self.model.prompt_encoder["default"]
            self.encoder.float().train()
            self.trained = list(self.encoder.parameters())
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0.0)

    def start_from(self, prefix: Prefix) -> None:
        """Take over the tensors of our network: PEFT's has the same layers in the same order.

        Where several heads share their keys, PEFT's is as wide as the keys and ours as the model: they start apart.
        """
        pairs = list(zip(self.encoder.parameters(), prefix.sites["decoder"].parameters(), strict=True))
        if any(theirs.shape != ours.shape for theirs, ours in pairs):
            return
        with torch.no_grad():
            for theirs, ours in pairs:
                theirs.copy_(ours)

    def step(self, step: int) -> float:
        """One update; the loss."""
        loss = self._loss(self._setting.batch(step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
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
        inputs = _pair_inputs(rows) if self._is_pair else _inputs(rows)
        mixed = self._autocast and self.model.base_model.dtype == torch.bfloat16
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            loss: Tensor = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).loss
        return loss


class PackArm:
    """Trials on one model that start alike and see the same rows, in groups of the given sizes that run in turn."""

    def __init__(self, model: PreTrainedModel, setting: Setting, sizes: Sequence[int]) -> None:
        base = wrap_model(model, None, name="random", digest="")  # type: ignore[arg-type]
        self.pack = Pack(base, setting.rows, pad_id=EOS)
        self._groups = {size: [f"{size}/{number}" for number in range(size)] for size in sizes}
        method = method_of(setting, base.shape)
        recipe = {"num_steps": 10**6, "schedule": "constant", "batch_size": setting.batch_size}
        config = TrialConfig(arm="timed", learning_rate=LEARNING_RATE, method=method, **recipe)  # type: ignore[arg-type]
        for key in (key for keys in self._groups.values() for key in keys):
            member = self.pack.admit(key, config, Seeds.derive(1, 0))
            member.next_rows = lambda ahead=0, member=member: setting.batch(member.step + ahead)  # type: ignore[method-assign, misc]

    @property
    def prefix(self) -> Prefix:
        """Any trial's."""
        method = next(iter(self.pack.members.values())).method
        assert isinstance(method, Prefix)
        return method

    def step(self, size: int) -> float:
        """One update of a group; its first trial's loss."""
        keys = self._groups[size]
        return self.pack.step(keys)[keys[0]].loss

    def validate(self, rows: Sequence[Row], size: int) -> float:
        """A group's dev losses; the first trial's."""
        keys = self._groups[size]
        return self.pack.evaluate(keys, rows)[keys[0]]


def method_of(setting: Setting, shape: Shape) -> AnyTrial:
    """What our trials train on a base of this shape."""
    if setting.method == "lora":
        return LoraTrial(rank=RANK, alpha=RANK)
    sites = "decoder" if shape.is_encoder_decoder else None
    return PrefixTrial(preseqlen=setting.preseqlen, mid_dim=MID_DIM, init_token=None, sites=sites)


def _inputs(rows: Sequence[Row]) -> dict[str, Tensor]:
    ids, mask = _padded([row.ids for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for own, row in zip(labels, rows, strict=True):
        own[: row.num_prompt] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _pair_inputs(rows: Sequence[Row]) -> dict[str, Tensor]:
    ids, mask = _padded([row.encoder_ids for row in rows])
    given, _ = _padded([row.ids[:-1] for row in rows])
    labels, seen = _padded([row.ids[1:] for row in rows])
    labels = labels.masked_fill(seen == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given, "labels": labels}


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(row) for row in rows], batch_first=True, padding_value=EOS)
    return ids, pad([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
