"""The decoding benchmark: beam search as the original does it, as PEFT does it in batches, and ours, in one table.

    python tests/bench/decode.py                                    # all cases on one CPU thread, in minutes
    python tests/bench/decode.py --case "6-layer, E2E, 5" --rounds 5
    python tests/bench/decode.py --case "gpt2-medium, E2E, 5" --device cuda
    python tests/bench/decode.py --case "6-layer, E2E, 5" --profile trace.json    # where the time goes

The arms of a case run in turn in one process; the first round warms up and is not counted. Times are CPU seconds of the
process (on a GPU the clock's). Random weights do not learn to end, so every hypothesis has the same number of tokens
and all arms do the same work; all prefixes are alike, so that all hypotheses of a source are to be the same, and the
table says of how many they are. Nothing here imports Ray, Optuna or MLflow.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from arms import PackArm, PeftArm, Setting
from cases import ALL_CASES, EOS, Case, make_model
from table import PRECISIONS, device_name, make_parser, ratios, spread, timed

from prefixray.batching.template import Template
from prefixray.config.schema import DecodingSettings
from prefixray.decoding.generate import generate
from prefixray.system.logs import quieten
from prefixray.training.profiling import profiled

CASES = ("6-layer, E2E, 5", "6-layer, E2E, 200", "GPT-2-small, E2E, 5", "SmolLM2-135M, E2E, 5")
PEFT_BATCH = 16
HEAD = f"{'':<24} {'sentences/s':>11}  {'x one at a time, fp32':<21} {'x one':>6} {'x batched':>9}  same hypotheses"
Hypotheses = list[tuple[int, ...]]


@dataclass
class Arm:
    """A way of decoding, timed round by round."""

    name: str
    precision: str
    run: Callable[[], Hypotheses]
    seconds: list[float] = field(default_factory=list)  # per sentence
    found: Hypotheses = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """What was found of an arm."""

    arm: Arm
    speed: float  # sentences a second
    to_first: list[float]  # by round, how many times as long the first arm took
    to_one: float  # and PEFT one at a time in the same precision, in the middle
    to_batched: float  # and PEFT in batches
    num_same: int  # hypotheses that are PEFT's


def main() -> None:
    """Print the table."""
    names = [name for name in ALL_CASES if "bart" not in name.lower()]
    parser = make_parser(__doc__, names, profiled_part="our decoding")
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--trials", type=int, default=4, help="whose prefixes stand in one batch")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    for name in options.case or CASES:
        case, precisions = ALL_CASES[name], options.precision or list(PRECISIONS)
        bench = Bench(case, precisions, options)
        if options.profile:
            bench.profile(precisions[-1], options.profile)
            continue
        print(
            f"{name}: {options.beams} beams, {options.new_tokens} new tokens, {bench.num_sources} sources, "
            f"{device_name(options.device)}\n{HEAD}"
        )
        bench.show(options.rounds)


class Bench:
    """The models of a case, and what is decoded with them."""

    def __init__(self, case: Case, precisions: Sequence[str], options: argparse.Namespace) -> None:
        rows = list({row.ids[: row.num_prompt]: row for row in case.data()[0]}.values())[: options.sources]
        self._prompts = [row.ids[: row.num_prompt] for row in rows]
        self._device, self._precisions, self._trials = torch.device(options.device), precisions, options.trials
        count = options.new_tokens
        self._decoding = DecodingSettings(num_beams=options.beams, min_new_tokens=count, max_new_tokens=count)
        setting = Setting(rows, case.batch_size, case.preseqlen, self._device)
        self._ours, self._peft = {}, {}
        for name in precisions:
            ours = self._ours[name] = PackArm(make_model(case, PRECISIONS[name], self._device), setting, (1,))
            peft = self._peft[name] = PeftArm(make_model(case, PRECISIONS[name], self._device), setting)
            peft.start_from(ours.prefix)
            peft.model.train(False)

    @property
    def num_sources(self) -> int:
        """How many sources are decoded."""
        return len(self._prompts)

    def arms(self) -> list[Arm]:
        """Every way in every precision."""
        arms = []
        for name in self._precisions:
            ways: dict[str, Callable[[str], Hypotheses]] = {
                "PEFT, one at a time": lambda name: self._by_peft(name, 1),
                f"PEFT, {PEFT_BATCH} at once": lambda name: self._by_peft(name, PEFT_BATCH),
                "ours, 1 trial": lambda name: self._by_us(name, 1),
                f"ours, {self._trials} trials": lambda name: self._by_us(name, self._trials),
            }
            arms += [Arm(f"{way} {name}", name, lambda run=run, name=name: run(name)) for way, run in ways.items()]
        return arms

    def show(self, rounds: int) -> None:
        """Run the arms in turn and print the table."""
        for line in self.run(rounds):
            middles = f"{line.to_one:6.2f} {line.to_batched:9.2f}"
            same = f"{line.num_same} of {len(line.arm.found)}"
            print(f"{line.arm.name:<24} {line.speed:11.2f}  {spread(line.to_first):<21} {middles}  {same}")
        print(flush=True)

    def run(self, rounds: int) -> list[Line]:
        """Run the arms in turn: what was found of each."""
        arms, lines = self.arms(), []
        for number in range(rounds + 1):
            for arm in arms:
                spent, arm.found = timed(arm.run, self._device)
                if number:
                    arm.seconds.append(spent / len(arm.found))
        for arm in arms:
            alike = [other for other in arms if other.precision == arm.precision]  # the first two are PEFT's
            to_first, to_one, to_batched = (ratios(other.seconds, arm.seconds) for other in (arms[0], *alike[:2]))
            same = sum(own == alike[0].found[place % self.num_sources] for place, own in enumerate(arm.found))
            middles = statistics.median(to_one), statistics.median(to_batched)
            lines.append(Line(arm, 1 / statistics.median(arm.seconds), to_first, *middles, same))
        return lines

    def profile(self, precision: str, file: str) -> None:
        """Write a trace of our decoding, one trial."""
        self._by_us(precision, 1)  # warm
        with profiled(file):
            self._by_us(precision, 1)

    def _by_peft(self, precision: str, batch_size: int) -> Hypotheses:
        """PEFT's `generate` over left-padded batches in the order of the file."""
        found: Hypotheses = []
        decoding = self._decoding
        for start in range(0, self.num_sources, batch_size):
            some = self._prompts[start : start + batch_size]
            longest = max(map(len, some))
            ids = torch.tensor([[EOS] * (longest - len(one)) + list(one) for one in some], device=self._device)
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in some], device=self._device)
            with torch.no_grad():
                output = self._peft[precision].model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    num_beams=decoding.num_beams,
                    min_new_tokens=decoding.min_new_tokens,
                    max_new_tokens=decoding.max_new_tokens,
                    eos_token_id=EOS,
                    pad_token_id=EOS,
                    do_sample=False,
                )
            found += [tuple(row) for row in output[:, longest:].tolist()]
        return found

    def _by_us(self, precision: str, trials: int) -> Hypotheses:
        """`generate` over all pairs of a trial and a source in one batch."""
        arm = self._ours[precision]
        base = replace(arm.pack.base, tokenizer=Numbers())
        inserts = [insert for _ in range(trials) for insert in [arm.prefix.insert(None)] * self.num_sources]
        sources = [" ".join(map(str, prompt)) for prompt in self._prompts] * trials
        decoding = self._decoding.model_copy(update={"batch_size": len(sources)})
        with torch.no_grad():
            texts = generate(base, number_template(base.tokenizer), sources, inserts, decoding)
        return [tuple(map(int, text.split())) for text in texts]


class Numbers:
    """A tokenizer whose text is the ids."""

    def __call__(self, texts: Sequence[str], **how: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[list(map(int, text.split())) for text in texts])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def number_template(tokenizer: Any) -> Template:  # noqa: ANN401
    """The template of `Numbers`: sources as they are."""
    none = ("", "")
    ends = {"eos_id": EOS, "pad_id": EOS, "max_source_tokens": 1024, "max_target_tokens": 1024}
    return Template(
        tokenizer, 1 << 31, False, form=none, target_form=none, before=(), after=(), target_before=(), **ends
    )


if __name__ == "__main__":
    main()
