"""The time and memory that a sweep takes, here and on GPUs: the numbers behind `prefixray plan`.

They are computed before anything is started.

Work is counted in FLOPs as in `flops`, time in seconds, memory in bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefixray.config.files.given import Given, given_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data.own.rows import Rows
from prefixray.methods.catalog import facts_of
from prefixray.planning.cautions import cautions
from prefixray.planning.devices import GPUS, Device, named_gpu, this_machine
from prefixray.planning.flops import decoding_flops, forward_flops, training_flops
from prefixray.planning.known import Known, find_known
from prefixray.planning.memory import Load, kept_numbers, largest_method, largest_trial, pack_bytes
from prefixray.planning.slots import MOST_SLOTS, num_slots
from prefixray.planning.speeds import Kind
from prefixray.planning.work import ArmWork, arm_works
from prefixray.search.policies.choice import rules_of
from prefixray.training.device.costs import STEP_SHARE
from prefixray.training.layout import TOKEN_BUDGET
from prefixray.trial import report_steps

START_SECONDS = 30.0  # until the first trial runs
BYTES_OF_WEIGHT = {"fp32": 4, "bf16": 2, "4bit": 1}  # 4bit: its embeddings are bf16
STEP_SECONDS_PER_LAYER: Mapping[Kind, float] = {"shared": 2e-3, "alone": 2e-3, "decode": 5e-4}  # of a GPU, at least


@dataclass(frozen=True)
class Cost:
    """What a sweep takes on a device. Times assume that all its workers are busy all the time."""

    device: Device
    slots: int
    arms: tuple[ArmWork, ...]
    pack: int | None  # memory of a worker whose pack is full
    alone: int | None  # memory of a worker that fine-tunes
    search: float
    final: float
    decode: float | None  # None: the number of test sources is not known

    @property
    def seconds(self) -> float:
        """From the start of the command to its table, without decoding where its time is not known."""
        return START_SECONDS + self.search + self.final + (self.decode or 0.0)

    def __str__(self) -> str:
        memory, needed = self.device.memory, max(self.pack or 0, self.alone or 0)
        if needed > memory:
            return f"{self.device.name}: does not fit: {needed / 2**30:.1f} GiB needed, {memory / 2**30:.1f} there"
        parts = {"search": self.search, "final runs": self.final, "decoding": self.decode}
        split = ", ".join(
            f"{part} {'not known' if value is None else f'{value / 60:.1f}'}" for part, value in parts.items()
        )
        at_least = "at least " if self.decode is None else ""
        return f"{self.device.name}: {self.slots} at once, {at_least}{self.seconds / 60:.1f} min ({split})"


@dataclass(frozen=True)
class Plan:
    """A sweep, its base and data as far as they are known, its work here, and its cost on each device."""

    config: SweepConfig
    known: Known
    arms: tuple[ArmWork, ...]
    cautions: tuple[str, ...]  # sentences: what may go another way, and with what the arms begin
    costs: tuple[Cost, ...] = field(default=())  # the first: this machine; none where the base is not known

    def __str__(self) -> str:
        lines = [f"{self.config.name}: trials at once and minutes, from nothing to the table"]
        lines += [f"  {line}" for line in (*self.costs, *self.cautions)]
        return "\n".join([*lines, *(f"  missing: {text}" for text in self.known.missing)])


def plan_sweep(
    sweep: Given,
    *,
    train: Rows | None = None,
    dev: Rows | None = None,
    test: Rows | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """What the sweep would take, here and on GPUs: nothing is started; `print` shows the times. Called as `run_sweep`.

    Raises `UserError` with every problem of the sweep, and where the base or the data cannot be used.
    """
    rows = {"train": train, "dev": dev, "test": test}
    return count_sweep(given_sweep(sweep, rows, overrides))


def count_sweep(config: SweepConfig) -> Plan:
    """Find out what can be known here, and count. Raises `UserError` where the base or the data cannot be used."""
    known = find_known(config)
    if known.base is None:
        works = arm_works(config, num_slots=MOST_SLOTS, num_workers=1, num_documents=known.num_documents)
        return Plan(config, known, works, cautions(known))
    size = known.base.shape.num_parameters
    here = this_machine(config, size)
    devices = [here, *(named_gpu(gpu, config, size) for gpu in GPUS if gpu.name not in here.name)]
    costs = tuple(_cost(known, device) for device in devices)
    return Plan(config, known, costs[0].arms, cautions(known), costs)


def _cost(known: Known, device: Device) -> Cost:
    config, shape = known.config, known.shape
    weight_bytes = BYTES_OF_WEIGHT[device.precision]
    free = device.memory - weight_bytes * shape.num_parameters
    sharing = [arm for arm in config.arms if not arm.exclusive]
    each = max((largest_trial(arm, shape, on_gpu=device.is_gpu) for arm in sharing), default=1)
    num_documents = known.num_documents
    slots = num_slots(free, config.search.num_searched(num_documents) * each)
    works = arm_works(config, num_slots=slots, num_workers=device.num_workers, num_documents=num_documents)
    packs = [pack for pack in _packs(works, slots, device.num_workers) if pack]
    alone = [[work] for work in works if work.arm.exclusive]
    decode = _decode_seconds(known, device, works)
    return Cost(
        device=device,
        slots=slots,
        arms=works,
        pack=max((_memory(known, device, pack) for pack in packs), default=None),
        alone=max((_memory(known, device, pack) for pack in alone), default=None),
        search=_train_seconds(known, device, works, is_final=False) / device.num_workers,
        final=_train_seconds(known, device, works, is_final=True) / device.num_workers,
        decode=None if decode is None else decode / device.num_workers,
    )


def _packs(works: Sequence[ArmWork], slots: int, num_workers: int) -> tuple[list[ArmWork], list[ArmWork]]:
    """The trials of a worker's pack in the search and in the final stage, each by its arm."""
    sharing = [work for work in works if not work.arm.exclusive]
    searched = [work for work in sharing if work.by_policy for _ in range(math.ceil(work.at_once / num_workers))]
    finals = [work for work in sharing for _ in range(math.ceil(work.finals / num_workers))]
    members = [work for work in searched[:slots] for _ in range(work.num_searched)]
    return members, finals[:slots]


def _memory(known: Known, device: Device, pack: Sequence[ArmWork]) -> int:
    """Peak memory of a worker with this pack, in which each trial is the largest of its arm."""
    methods = [largest_method(work.arm, known.shape) for work in pack]
    weight_bytes = BYTES_OF_WEIGHT[device.precision]
    longest = max(facts_of(method).infix_positions(method) for method in methods)
    load = _load(known, pack, device)
    load = replace(load, tokens=load.tokens + load.rows * longest)
    return pack_bytes(methods, known.shape, load, weight_bytes=weight_bytes, on_gpu=device.is_gpu)


def _load(known: Known, pack: Sequence[ArmWork], device: Device) -> Load:
    """The largest micro-batch of a pack: all its rows, or as many as the token budget allows, or a GPU's memory."""
    rows = sum(work.rows_per_step for work in pack)
    length = max(1.0, known.train.encoder + known.train.decoder)
    rows = max(1, min(rows, int(TOKEN_BUDGET["cuda" if device.is_gpu else "cpu"] / length)))
    if device.is_gpu:
        row_bytes = (4 if device.precision == "fp32" else 2) * kept_numbers(0, known.shape, _load_of(known, 1))
        rows = max(1, min(rows, int(STEP_SHARE * device.memory / row_bytes)))
    return _load_of(known, rows)


def _load_of(known: Known, rows: int) -> Load:
    """A micro-batch of so many rows."""
    targets = math.ceil(rows * known.train.targets)
    decoder, encoder = math.ceil(rows * known.train.decoder), math.ceil(rows * known.train.encoder)
    return Load(rows, max(1, decoder), targets, known.config.train.gradient_checkpointing, encoder)


def _train_seconds(known: Known, device: Device, works: Sequence[ArmWork], *, is_final: bool) -> float:
    """Training seconds, if one worker did everything: the arms that share the base, then those that need it alone."""
    kinds: tuple[Kind, ...] = ("shared", "alone")
    seconds = 0.0
    for kind in kinds:
        of_kind = [work for work in works if work.kind == kind]
        flops = sum(_train_flops(known, work, is_final=is_final) for work in of_kind)
        steps = [work.final_steps if is_final else work.search.steps for work in of_kind]
        sizes = [work.finals if is_final else work.at_once for work in of_kind]  # trials that step together
        in_turn = max((count / size for count, size in zip(steps, sizes, strict=True)), default=0.0)  # of each worker
        least = _least_seconds(known, device, kind, in_turn * device.num_workers if kind == "shared" else sum(steps))
        seconds += max(flops / device.rates[kind], least)
    return seconds


def _train_flops(known: Known, work: ArmWork, *, is_final: bool) -> float:
    """The work of an arm's steps and of its evaluations on dev."""
    runs, train = work.candidates + work.finals, known.config.train
    steps = work.final_steps if is_final else work.member_steps
    evaluations = (
        runs * len(report_steps(train.eval_every, rules_of(known.config).rungs, work.arm.num_steps))
        if is_final
        else work.search.evaluations * work.num_searched
    )
    method = largest_method(work.arm, known.shape)
    each = training_flops(known.shape, known.train, method, is_checkpointed=train.gradient_checkpointing)
    return steps * work.rows_per_step * each + evaluations * known.num_dev * forward_flops(known.shape, known.dev)


def _decode_seconds(known: Known, device: Device, works: Sequence[ArmWork]) -> float | None:
    """Decoding seconds, if one worker did everything: base and final runs on test, candidates on dev.

    What a document in front of each row costs besides is left out.
    """
    if known.num_test is None:
        return None
    final, source = known.config.final, known.train.source
    num_documents = max(1, known.num_documents)
    num_test = math.ceil(known.num_test / num_documents)  # of a run: the questions about its document
    num_dev = known.num_dev if known.task is None else math.ceil(len(known.task.dev_sources) / num_documents)
    decoded = [known.num_test] + [num_test] * (num_decodes(known, works) - 1)
    decoded += [num_dev] * sum(work.candidates for work in works)
    beams, length = final.num_beams, final.max_new_tokens
    each = decoding_flops(known.shape, source, num_beams=beams, max_new_tokens=length)
    num_batches = sum(math.ceil(count / final.batch_size) for count in decoded)
    least = _least_seconds(known, device, "decode", num_batches * length)
    return max(sum(decoded) * each / device.rates["decode"], least)


def num_decodes(known: Known, works: Sequence[ArmWork]) -> int:
    """The number of models that decode test: the untuned base, the base behind each document, and every final run."""
    return 1 + known.num_documents + sum(work.finals for work in works)


def _least_seconds(known: Known, device: Device, kind: Kind, num_steps: float) -> float:
    """The least time of this many steps on a GPU, however small they are; 0 where its speed was measured."""
    if not device.is_gpu or device.rates_from[kind].startswith("measured"):
        return 0.0
    return float(num_steps * known.shape.num_blocks * STEP_SECONDS_PER_LAYER[kind])
