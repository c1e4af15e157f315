"""What a sweep will do and what it will take, before anything is started: the numbers behind `prefixray plan`.

Nothing heavier is loaded than the base's configuration and tokenizer and a part of the data. Whatever cannot be known
here is missing from the plan, which says so, and the rest stands.
"""

# Work is counted in FLOPs as in `speed`, time in seconds, memory in bytes.

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefixray.batching.batches import encode
from prefixray.batching.lengths import Lengths, row_lengths
from prefixray.batching.shared_prompts import lengths_run
from prefixray.batching.template import make_template
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.data import Example, Task, load_task
from prefixray.data.catalog import CATALOG
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods.catalog import facts_of
from prefixray.model.base import Base, outline_base
from prefixray.model.shape import Shape
from prefixray.planning.devices import GPUS, Device, named_gpu, this_machine
from prefixray.planning.flops import decoding_flops, forward_flops, training_flops
from prefixray.planning.memory import Load, largest_method, largest_trial, pack_bytes
from prefixray.planning.slots import MOST_SLOTS, num_at_once, num_slots
from prefixray.planning.speeds import Kind
from prefixray.system.path_or_hub import local_path
from prefixray.training.layout import TOKEN_BUDGET
from prefixray.trial import report_steps

NUM_TOKENISED = 2000  # training examples whose tokens are counted
MOST_DATA_BYTES = 64 << 20  # of a task's files, to be read for a plan
TOKENS_PER_WORD = 1.5  # where the tokenizer is not there
START_SECONDS = 30.0  # until the first trial runs
BYTES_OF_WEIGHT = {"fp32": 4, "bf16": 2, "4bit": 1}  # 4bit: its embeddings are bf16
STEP_SECONDS_PER_LAYER: Mapping[Kind, float] = {"shared": 2e-3, "alone": 2e-3, "decode": 5e-4}  # of a GPU, at least


@dataclass(frozen=True)
class Known:
    """What can be found out about the base and the data without downloading either."""

    config: SweepConfig
    base: Base | None
    task: Task | None
    train: Lengths
    dev: Lengths
    lengths_from: str
    missing: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """The sizes of the base."""
        assert self.base is not None, "memory and time are told of a base that is known"
        return self.base.shape

    @property
    def num_dev(self) -> int:
        """Dev examples that the loss is computed on; 0 where that is not known."""
        if self.task is not None:
            return len(self.task.dev)
        low = self.config.task.low_data
        return low.num_dev if low is not None else _counted(self.config.task.num_dev) or 0

    @property
    def num_test(self) -> int | None:
        """Test sources that are decoded."""
        if self.task is not None:
            return len(self.task.test_sources)
        task = self.config.task
        return _counted(task.num_test) or CATALOG[task.name].num_test


@dataclass(frozen=True)
class ArmWork:
    """What an arm does; the counts of the search are expected values."""

    arm: ArmConfig
    at_once: int
    generations: int  # 0 where nothing is searched
    together: tuple[int, ...]  # trials that reach each rung and the end, if all are judged together
    expected: tuple[float, ...]  # the same as they come in, in any order
    search_steps: float
    search_evaluations: float
    candidates: int  # runs of the final stage that are compared on dev
    finals: int  # runs that see test
    rows_per_step: int

    @property
    def kind(self) -> Kind:
        """How its trials are trained."""
        return "alone" if self.arm.exclusive else "shared"

    @property
    def final_steps(self) -> int:
        """Steps of all its runs of the final stage."""
        return (self.candidates + self.finals) * self.arm.num_steps


@dataclass(frozen=True)
class Cost:
    """What a sweep takes on a device. Times are of all its workers together, busy all the time."""

    device: Device
    slots: int
    arms: tuple[ArmWork, ...]
    pack: int | None  # memory of a worker whose pack is full
    alone: int | None  # and of one that fine-tunes
    search: float
    final: float
    decode: float | None  # None: the number of test sources is not known

    @property
    def seconds(self) -> float:
        """From the command to the table."""
        return START_SECONDS + self.search + self.final + (self.decode or 0.0)


@dataclass(frozen=True)
class Plan:
    """A sweep, what is known of it, what it does here, and what it would take on each device."""

    config: SweepConfig
    known: Known
    arms: tuple[ArmWork, ...]
    costs: tuple[Cost, ...] = field(default=())  # the first: this machine; none where the base is not known


def plan_sweep(config: SweepConfig) -> Plan:
    """Find out what can be known here, and count. Raises `UserError` where the base or the data cannot be used."""
    known = _look(config)
    if known.base is None:
        return Plan(config, known, arm_works(config, num_slots=MOST_SLOTS, num_workers=1))
    size = known.base.shape.num_parameters
    here = this_machine(config, size)
    devices = [here, *(named_gpu(gpu, config, size) for gpu in GPUS if gpu.name not in here.name)]
    costs = tuple(_cost(known, device) for device in devices)
    return Plan(config, known, costs[0].arms, costs)


def arm_works(config: SweepConfig, *, num_slots: int, num_workers: int) -> tuple[ArmWork, ...]:
    """What each arm does on so many slots and workers."""
    return tuple(_arm_work(config, arm, num_slots, num_workers) for arm in config.arms)


def _arm_work(config: SweepConfig, arm: ArmConfig, slots: int, num_workers: int) -> ArmWork:
    search, final = config.search, config.final
    at_once = num_at_once(arm, search.concurrency, num_slots=slots, num_workers=num_workers)
    rows = _highest(arm, "batch_size") * _highest(arm, "grad_accumulation")
    if not arm.dimensions:
        return ArmWork(arm, at_once, 0, (), (), 0.0, 0.0, 0, final.num_seeds, rows)
    ends = [*search.rungs, arm.num_steps]
    together: list[int] = [arm.num_trials]
    expected: list[float] = [arm.num_trials]
    group = math.ceil(at_once / num_workers)  # trials of a pack reach a rung in the same step
    for _ in search.rungs:
        together.append(max(1, math.ceil(search.keep * together[-1])))
        expected.append(expected_passes(expected[-1], group, search.keep))
        group = max(1, round(group * expected[-1] / expected[-2]))
    starts = [0, *search.rungs]
    steps = sum(count * (end - start) for count, start, end in zip(expected, starts, ends, strict=True))
    evaluations = sum(
        next(count for count, end in zip(expected, ends, strict=True) if step <= end)
        for step in report_steps(config.train, search.rungs, arm.num_steps)
    )
    candidates = min(final.candidates, together[-1])
    return ArmWork(
        arm=arm,
        at_once=at_once,
        generations=math.ceil(arm.num_trials / at_once),
        together=tuple(together),
        expected=tuple(expected),
        search_steps=steps,
        search_evaluations=evaluations,
        candidates=candidates if candidates > 1 else 0,
        finals=final.num_seeds,
        rows_per_step=rows,
    )


def expected_passes(num_arrivals: float, at_once: int, keep: float) -> float:
    """How many trials pass a rung on average, if their scores come in any order, `at_once` at a time.

    A trial passes when it is among the best `keep` of those that have arrived so far, itself and its group included, so
    more pass than if all were judged in the end.
    """
    passed = seen = 0.0
    while num_arrivals - seen > 1e-9:
        group = min(float(at_once), num_arrivals - seen)
        seen += group
        passed += group * min(1.0, max(1, math.ceil(keep * seen)) / seen)
    return passed


def _cost(known: Known, device: Device) -> Cost:
    config, shape = known.config, known.shape
    weight_bytes = BYTES_OF_WEIGHT[device.precision]
    free = device.memory - weight_bytes * shape.num_parameters
    sharing = [arm for arm in config.arms if not arm.exclusive]
    slots = num_slots(free, max((largest_trial(arm, shape) for arm in sharing), default=1))
    works = arm_works(config, num_slots=slots, num_workers=device.num_workers)
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
    searched = [work for work in sharing if work.generations for _ in range(math.ceil(work.at_once / num_workers))]
    finals = [work for work in sharing for _ in range(math.ceil(work.finals / num_workers))]
    return searched[:slots], finals[:slots]


def _memory(known: Known, device: Device, pack: Sequence[ArmWork]) -> int:
    """Of a worker with this pack, each trial its arm's largest."""
    methods = [largest_method(work.arm, known.shape) for work in pack]
    weight_bytes = BYTES_OF_WEIGHT[device.precision]
    longest = max(facts_of(method).infix_positions(method) for method in methods)
    load = _load(known, pack, device)
    load = replace(load, tokens=load.tokens + load.rows * longest)
    return pack_bytes(methods, known.shape, load, weight_bytes=weight_bytes)


def _load(known: Known, pack: Sequence[ArmWork], device: Device) -> Load:
    """The largest micro-batch of a pack: all its rows, or as many as the token budget lets in."""
    rows = sum(work.rows_per_step for work in pack)
    length = max(1.0, known.train.encoder + known.train.decoder)
    rows = max(1, min(rows, int(TOKEN_BUDGET["cuda" if device.is_gpu else "cpu"] / length)))
    targets = math.ceil(rows * known.train.targets)
    decoder, encoder = math.ceil(rows * known.train.decoder), math.ceil(rows * known.train.encoder)
    return Load(rows, max(1, decoder), targets, known.config.train.gradient_checkpointing, encoder)


def _train_seconds(known: Known, device: Device, works: Sequence[ArmWork], *, is_final: bool) -> float:
    """Of one worker: the arms that share the base, then those that do not."""
    kinds: tuple[Kind, ...] = ("shared", "alone")
    seconds = 0.0
    for kind in kinds:
        own = [work for work in works if work.kind == kind]
        flops = sum(_train_flops(known, work, is_final=is_final) for work in own)
        steps = [work.final_steps if is_final else work.search_steps for work in own]
        sides = [work.finals if is_final else work.at_once for work in own]
        in_turn = max((one / side for one, side in zip(steps, sides, strict=True)), default=0.0)
        least = _least_seconds(known, device, kind, in_turn if kind == "shared" else sum(steps))
        seconds += max(flops / device.rates[kind], least)
    return seconds


def _train_flops(known: Known, work: ArmWork, *, is_final: bool) -> float:
    """Of the steps of an arm and its evaluations on dev."""
    runs, train = work.candidates + work.finals, known.config.train
    steps = work.final_steps if is_final else work.search_steps
    evaluations = (
        runs * len(report_steps(train, known.config.search.rungs, work.arm.num_steps))
        if is_final
        else work.search_evaluations
    )
    method = largest_method(work.arm, known.shape)
    each = training_flops(known.shape, known.train, method, is_checkpointed=train.gradient_checkpointing)
    return steps * work.rows_per_step * each + evaluations * known.num_dev * forward_flops(known.shape, known.dev)


def _decode_seconds(known: Known, device: Device, works: Sequence[ArmWork]) -> float | None:
    """Of one worker: the untuned base and every final run on test, candidates on dev."""
    if known.num_test is None:
        return None
    final, source = known.config.final, known.train.source
    num_dev = known.num_dev if known.task is None else len(known.task.dev_sources)
    decoded = [known.num_test] * num_decodes(works) + [num_dev] * sum(work.candidates for work in works)
    beams, length = final.num_beams, final.max_new_tokens
    each = decoding_flops(known.shape, source, num_beams=beams, max_new_tokens=length)
    num_batches = sum(math.ceil(count / final.batch_size) for count in decoded)
    least = _least_seconds(known, device, "decode", num_batches * length)
    return max(sum(decoded) * each / device.rates["decode"], least)


def num_decodes(works: Sequence[ArmWork]) -> int:
    """Models that decode test: the untuned base and every final run."""
    return 1 + sum(work.finals for work in works)


def _least_seconds(known: Known, device: Device, kind: Kind, num_steps: float) -> float:
    """What so many steps take on a GPU however small they are, unless its speed was measured."""
    if not device.is_gpu or device.rates_from[kind].startswith("measured"):
        return 0.0
    return float(num_steps * known.shape.num_blocks * STEP_SECONDS_PER_LAYER[kind])


def _look(config: SweepConfig) -> Known:
    missing: list[str] = []
    base, task = _base_here(config, missing), _task_here(config.task, missing)
    if task is None:
        most = _bound(base, config.task)
        how = "an upper bound: max_source_tokens, max_target_tokens"
        return Known(config, base, None, most, most, how, tuple(missing))
    sample = task.train[:: math.ceil(len(task.train) / NUM_TOKENISED)]
    if base is None:
        train, dev = (_from_words(examples, config.task) for examples in (sample, task.dev))
        return Known(config, None, task, train, dev, f"estimated: {TOKENS_PER_WORD} tokens per word", tuple(missing))
    template = make_template(base, config.task)
    train, dev = row_lengths(encode(sample, template)), lengths_run(encode(task.dev, template))
    counted = f"measured on {len(sample):,} training examples" if len(sample) < len(task.train) else "measured"
    return Known(config, base, task, train, dev, counted, tuple(missing))


def _base_here(config: SweepConfig, missing: list[str]) -> Base | None:
    try:
        return outline_base(config.base, trust_remote_code=config.trust_remote_code)
    except UserError as error:
        if "cannot be reached" not in str(error):
            raise
        missing.append(f"{error.problems[0]}; without it neither memory nor time can be told")
        return None


def _task_here(config: TaskConfig, missing: list[str]) -> Task | None:
    """The data where it lies on this machine and is small enough to be read for a plan."""
    names = [config.path] if config.path is not None else [config.train, config.dev, config.test]
    given = [local_path(name) for name in names if name is not None]
    there = [path for path in given if path is not None]
    if CATALOG[config.name].keys and not (there and len(there) == len(given)):
        missing.append(f"task: {config.name} is not on this machine; a local copy as task.path would be counted")
        return None
    size = sum(file.stat().st_size for path in there for file in ([path] if path.is_file() else path.rglob("*")))
    if size > MOST_DATA_BYTES:
        missing.append(f"task: {size / 2**20:,.0f} MiB of data, more than is read for a plan")
        return None
    return load_task(config)


def _bound(base: Base | None, task: TaskConfig) -> Lengths:
    """The longest that an example can be, without what stands around its texts."""
    source, target = task.max_source_tokens, task.max_target_tokens + 1
    if base is not None and base.shape.is_encoder_decoder:
        return Lengths(source, target, target)
    return Lengths(0, source + target, target)


def _from_words(examples: Sequence[Example], task: TaskConfig) -> Lengths:
    count = max(1, len(examples))
    source, target = (
        sum(min(most, TOKENS_PER_WORD * len(text.split())) for text in texts) / count
        for most, texts in (
            (task.max_source_tokens, [one.source for one in examples]),
            (task.max_target_tokens, [one.target for one in examples]),
        )
    )
    return Lengths(0, source + target, target)


def _highest(arm: ArmConfig, key: str) -> int:
    """The largest value that a key of the recipe has in an arm."""
    if key in arm.dimensions:
        return max(end for end in arm.dimensions[key].ends() if isinstance(end, int))
    value = arm.fixed.get(key, getattr(arm.train, key))
    assert isinstance(value, int), f"{key} is a whole number"
    return value


def _counted(count: int | str) -> int | None:
    return count if isinstance(count, int) else None
