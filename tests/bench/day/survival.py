"""What a pack and its trials survive: half the memory, and the end of their process."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arms import PackArm, Setting
from cases import ALL_CASES, make_model
from support.tiny_bases import SPECIAL_TOKENS, random_model, train_tokenizer
from table import timed

from day.result import Result
from prefixray.config.trials import AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import load_base
from prefixray.training.trainer import Trainer
from prefixray.trial import TrialSpec

GIB = 2**30
DEVICE = torch.device("cuda")
NUM_STEPS, EVAL_EVERY, KILLED_AT = 40, 5, 17
TASK = TaskConfig(name="e2e", num_train=100, num_dev=8, num_test=1)
TRIALS: dict[str, AnyTrial] = {
    "prefix": PrefixTrial(preseqlen=4, mid_dim=16, init_token=None, prefix_dropout=0.1),
    "lora": LoraTrial(rank=2, dropout=0.1),
}


def no_memory(result: Result, is_pretended: bool) -> None:
    """A step of a pack that has half the memory it wants: the same losses, in smaller pieces."""
    case, size = ALL_CASES["tiny" if is_pretended else "GPT-2-small, E2E, 5"], 4 if is_pretended else 16
    model = make_model(case, torch.float32, DEVICE)
    setting = Setting(case.data()[0], case.batch_size, case.preseqlen, DEVICE, "lora")
    whole, taken = _step_within(None, model, setting, size)
    half, _ = _step_within(taken // 2, model, setting, size)
    result.row(f"A step of a pack of {size}", {"what": "all memory", **whole})
    result.row(f"A step of a pack of {size}", {"what": "half of what it took", **half})
    apart = abs(whole["loss"] - half["loss"])
    result.say(GiB_of_a_step=taken / GIB, losses_differ_by=apart)
    if not apart < 1e-3:
        sys.exit("the losses are not the same")


def _step_within(room: int | None, model: Any, setting: Setting, size: int) -> tuple[dict[str, Any], int]:  # noqa: ANN401
    """A step of a new pack that may take so many bytes more, and what it has taken."""
    arm = PackArm(model, setting, (size,))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    if room is not None:
        torch.cuda.set_per_process_memory_fraction((before + room) / total)
    seconds, loss = timed(lambda: arm.step(size), DEVICE)
    torch.cuda.set_per_process_memory_fraction(1.0)
    found = {"ms": 1e3 * seconds, "loss": loss, "tokens of a piece, at most": arm.pack.token_budget}
    return found, torch.cuda.max_memory_reserved() - before


def resume(result: Result, _: bool) -> None:
    """Trials whose process is killed go on from their checkpoints, to the losses of undisturbed ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(*SPECIAL_TOKENS["gpt2"])
        random_model("gpt2", tokenizer).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        undisturbed = train(folder, "undisturbed")
        step = _killed(folder)
        again = train(folder, "killed")
    for key, found in undisturbed.items():
        row: dict[str, object] = {"what": key, "killed at step": step, "went on at step": again[key]["from"]}
        row |= {"dev loss": again[key]["loss"], "undisturbed": found["loss"]}
        result.row("Trials", row | {"apart": abs(again[key]["loss"] - found["loss"])})
    apart = max(abs(again[key]["loss"] - found["loss"]) for key, found in undisturbed.items())
    if not (apart < 1e-4 and all(found["from"] > 0 for found in again.values())):
        sys.exit("the losses are not the same, or the trials did not go on")


def train(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Train to the end from where the checkpoints are: where trials began, and their last dev losses."""
    trainer = Trainer(load_base(str(folder / "base"), device="cuda"), load_task(TASK), TASK)
    found: dict[str, dict[str, Any]] = {}
    for key, method in TRIALS.items():
        recipe: dict[str, Any] = {"num_steps": NUM_STEPS, "eval_every": EVAL_EVERY, "batch_size": 4}
        config = TrialConfig(arm=key, method=method, learning_rate=1e-2, **recipe)
        spec = TrialSpec(key, config, seed=1, replicate=0, rungs=(), folder=str(folder / name / key))
        found[key] = {"from": trainer.admit(spec)}
    while trainer.keys():
        for report in trainer.run():
            if report.state == "failed":
                sys.exit(f"{report.key}: {report.note}")
            found[report.key]["loss"] = report.metrics["dev/loss"]
        print(json.dumps(trainer.steps()), flush=True)
    return found


def _killed(folder: Path) -> int:
    """Train in a process that is killed; the step at which it was."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "day.survival", str(folder)]  # a pretended GPU comes by PYTHONPATH, too
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            steps = json.loads(line) if line.startswith("{") else {}
            if steps and min(steps.values()) >= KILLED_AT:
                os.kill(process.pid, signal.SIGKILL)
                return int(min(steps.values()))
    sys.exit("the process to be killed ended by itself")


PARTS = {"no-memory": no_memory, "resume": resume}

if __name__ == "__main__":
    train(Path(sys.argv[1]), "killed")
    time.sleep(60)
