"""Record all that the commands print and write for tiny sweeps, and compare it with the record of another version.

    python tests/bench/same_numbers.py --out before.json        # about two minutes on two idle cores
    python tests/bench/same_numbers.py --against before.json    # prints each difference; 1 if there is one

For changes that must change nothing. It calls the commands alone, of the prefixray that PYTHONPATH or the installation
gives, so that one copy of it runs with both versions. Both records must be made on one machine: another CPU rounds
otherwise. Dates, times, memory, versions, run ids and this run's folder are left out or replaced by a word.

A trial that is alone in its pack has the same bits in every run: those of the search (one at a time), of fine-tuning
and of `train` are compared to the bit. In a larger pack rounding depends on who is in it, which is a matter of moments:
losses and tensors of the other final runs are compared to 1e-4, their hypotheses and scores still to the letter.
"""

import argparse
import difflib
import hashlib
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Record = dict[str, Any]  # what it is about -> a text, a number, None or a list of them

SWEEP = """\
name: tiny
base: base
task: {name: e2e, num_train: 200, num_dev: 20, num_test: 10}
train: {batch_size: 4, num_steps: 24, warmup_steps: 2, precision: fp32}
arms:
  prefix:
    preseqlen: {choice: [1, 3, 8]}
    mid_dim: {choice: [null, 16]}
    init_token: {choice: [pub, null]}
    learning_rate: {log_uniform: [1e-3, 3e-2]}
  words: {method: prefix, preseqlen: 3, mid_dim: 16, init_token: pub, prefix_mode: embedding, learning_rate: 1e-2}
  infix: {method: prefix, preseqlen: 3, mid_dim: null, init_token: pub, format_mode: infix, learning_rate: 1e-2}
  lora: {rank: 2, dropout: 0.1, learning_rate: 5e-3}
  adapter: {percent: 3, design: 2, learning_rate: 5e-3}
  finetune: {learning_rate: 1e-3}
  top: {method: finetune, top_layers: 1, tune_embeddings: false, learning_rate: 1e-3}
search: {num_trials: 4, concurrency: 1, rungs: [6, 12], keep: 0.5, seed: 3}
final: {candidates: 2, num_seeds: 2, metric: test/bleu, reference: finetune, num_beams: 2, max_new_tokens: 24}
"""
PAIR = """\
name: pair
base: bart
task: {name: custom, train: rows.jsonl, dev: rows.jsonl, test: rows.jsonl, num_test: 6, instruction: "Say:"}
train: {batch_size: 3, grad_accumulation: 2, num_steps: 6, warmup_steps: 1, schedule: cosine,
  weight_decay: 0.1, objective: sentence_sum, label_smoothing: 0.1, eval_every: 2, precision: fp32}
arms:
  prefix: {preseqlen: 2, mid_dim: 8, init_token: a, prefix_dropout: 0.1, sites: [cross, encoder], learning_rate: 1e-2}
  adapter: {bottleneck: 3, learning_rate: 1e-2}
search: {num_trials: 1}
final: {num_beams: 3, max_new_tokens: 6, length_penalty: 0.8, no_repeat_ngram_size: 2, early_stopping: true}
"""
TRAINED = ("prefix", "words", "infix", "lora", "adapter")  # arms of SWEEP that `train` trains as well
MISTAKES = (  # what stands in SWEEP, and in its place
    ("preseqlen: {choice: [1", "presqlen: {choice: [1"),
    ("learning_rate: 1e-3}", "learning_rate: fast, zzz: 1}"),
    ("name: tiny", "name: ../tiny"),
    ("base: base", "base: ./nowhere"),
    ("{name: e2e", "{name: e2"),
    ("num_dev: 20", "num_dev: none, path: data"),
    ("warmup_steps: 2", "warmup_steps: 24"),
    ("rungs: [6, 12]", "rungs: [12, 6, 0], keep: 2"),
    ("rungs: [6, 12]", "rungs: [3, 24]"),
    ("reference: finetune", "reference: finetuned"),
    ("test/bleu", "test/accuracy"),
    ("max_new_tokens: 24", "max_new_tokens: 5, min_new_tokens: 9"),
    ("  finetune: {", "  untuned: {"),
    ("{percent: 3", "{percent: 3, bottleneck: 8"),
    ("rank: 2", "rank: 2, num_trials: 8, eval_every: 5"),
    ("dropout: 0.1", "dropout: [0.1, 0.2]"),
    ("{log_uniform: [1e-3, 3e-2]}", "{loguniform: [1e-3, 3e-2]}"),
    ("{log_uniform: [1e-3, 3e-2]}", "{log_uniform: [3e-2, 1e-3]}"),
    ("{log_uniform: [1e-3, 3e-2]}", "{log_uniform: [0, 1e-3, 3e-2], choice: [1]}"),
    ("{choice: [1, 3, 8]}", "{uniform: [1, 8], when: {rank: 2}}"),
    ("{choice: [pub, null]}", "{choice: ['', pub, pub], when: {mid_dim: [800]}}"),
    ("{choice: [1, 3, 8]}", "{choice: [1, null]}"),
    ("search: {", "scale: {laptop: {tsk.num_dev: 3}, so-short: 3}\nsearch: {"),
    ("precision: fp32", "precision: 4bit"),
    ("3e-2]}", "3e-2]}\n    first: [{preseqlen: 7, mid_dim: null, init_token: 5, z: 1}]"),
    ("3e-2]}", "3e-2}"),
)
WRONG = """\
sweep nowhere.yaml; sweep tiny.yaml --scale laptop; sweep tiny.yaml --set preseqlen=5 --set final.num_beams=true
sweep tiny.yaml --set train.batch_size=3 --set arms.lora.rank=3; sweep tiny.yaml --set name=other --set base=no:a.gguf
report tny; report tiny --paper table99; control tiny stop prefx/1; control tiny add --set preseqlen=2
decode runs/tiny --arm prefx; decode runs/tiny/final; export runs/tiny; export runs/tiny --arm adapter --out refused
train tiny.yaml --arm prefx; train tiny.yaml --arm prefix --set preseqlenn=3; cluster_check tiny.yaml
convert original --base bart --task e2e --out refused"""  # the fourth is not the sweep that ran
COMMANDS = ("sweep", "plan", "report", "control", "decode", "export", "convert", "train", "cluster_check")
VARYING = {"train/seconds", "seconds", "minutes", "budget", "machine", "versions", "sha256", "prefixray.version"}
VARYING |= {"worker_id", "trial_id", "study_id", "datetime_start", "datetime_complete", "values", "intermediate_value"}
VARYING |= {"mlflow.source.git.commit"}  # keys of JSON files and of MLflow
REPLACED = (  # in texts
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\bworker-\d\b", "worker-N"),
    (r"\d{4}-\d\d-\d\d[T ][\d:.]+", "DATE"),
    (r"(prefixray |  version   = \{)\d+\.\d+\.\d+", r"\1VERSION"),
    (r"(?m) \d+\.\d( \|)?$", r" MIN\1"),  # a table's last column
    (r"(?m)^here  .*$|\d+ GFLOP/s|\d+\.\d GiB free.*", "MEASURED"),  # of a plan, of workers
)
PACKED = re.compile(r"(final|candidates|arms).*(prefix|words|infix|lora|adapter).*(loss|norm|earlier|tensor)")


def main() -> int:
    """Record, and compare where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="write the record to this file")
    what.add_argument("--against", type=Path, help="record, and print what differs from this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subprocess.run([sys.executable, "-c", "import prefixray; print(*prefixray.__path__)"], cwd="/", check=True)
    with tempfile.TemporaryDirectory(prefix="same") as folder:
        record = Recorder(Path(folder).resolve()).all()
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=0, sort_keys=True, ensure_ascii=False) + "\n")
        print(f"{len(record)} entries -> {options.out}")
        return 0
    before = json.loads(options.against.read_text())
    differing = [key for key in sorted({*before, *record}) if not _same(key, before.get(key), record.get(key))]
    for key in differing:
        print("\n".join(_difference(key, before.get(key, "(not there)"), record.get(key, "(not there)"))))
    print(f"{len(differing)} of {len({*before, *record})} entries differ")
    return 1 if differing else 0


class Recorder:
    """Runs the commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record: Record = {}

    def all(self) -> Record:
        """Everything, one command after the other."""
        make_bases(self._folder)
        (self._folder / "tiny.yaml").write_text(SWEEP)
        (self._folder / "pair.yaml").write_text(PAIR)
        for name in COMMANDS:
            self._run(name, "--help")
        for old, new in MISTAKES:
            assert old in SWEEP, old
            (self._folder / "wrong.yaml").write_text(SWEEP.replace(old, new, 1))
            self._run("plan", "wrong.yaml", about=new)
        self._run("plan", "tiny.yaml")
        self._run("sweep", "tiny.yaml")
        self._of_sweep(self._folder / "runs" / "tiny")
        self._run("report", "tiny", "--paper", "table1")
        self._trials()
        for line in re.split("; |\n", WRONG):
            self._run(*line.split())
        return self._record

    def _trials(self) -> None:
        """Single trials and artifacts: trained, decoded, exported, converted."""
        for arm in TRAINED:
            self._run("train", "tiny.yaml", "--arm", arm, "--replicate", "1", "--threads", "1")
        for arm in ("prefix", "adapter"):
            self._run("train", "pair.yaml", "--arm", arm, "--threads", "1")
        trained = next(self._folder.glob("runs/pair/train/prefix-*/artifact"))
        one = "runs/tiny/trials/prefix/0"
        self._run("decode", str(trained.relative_to(self._folder)))
        self._run("decode", "runs/tiny", "--arm", "finetune", "--out", "again")
        self._run("decode", f"{one}/artifact", "--split", "dev", "--num-beams", "3", "--max-new-tokens", "9")
        self._run("export", f"{one}/artifact", "--format", "peft", "--out", "peft")
        self._run("export", "runs/tiny", "--arm", "lora", "--format", "hub", "--out", "hub/final/lora")
        self._run("convert", "original", "--base", "base", "--out", "converted")
        for place in ("runs/tiny/train", "runs/pair", "again", f"{one}/decoded", "peft", "hub", "converted"):
            self._files(place)

    def _run(self, command: str, *arguments: str, about: str = "") -> None:
        """Note a command's exit code and what it prints; of a sweep's progress only what has ended, sorted."""
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        environment |= {"PREFIXRAY_CACHE": str(self._folder / "cache")}
        whole = [sys.executable, "-m", f"prefixray.{command}", *arguments]
        ran = subprocess.run(whole, cwd=self._folder, env=environment, capture_output=True, text=True)
        print(f"{command} {' '.join(arguments)} {about}: {ran.returncode}", file=sys.stderr)
        print(ran.stderr if ran.returncode == 1 else "", end="", file=sys.stderr)  # 1: it has failed
        lines = (ran.stdout + ran.stderr).splitlines()
        progress = [line for line in lines if re.match(r"\d+:\d\d  ", line)]
        if progress:
            ends = [re.sub(r"  dev/loss.*|^\S+ ", "", line) for line in progress if re.search(" (stopped|done) ", line)]
            lines = [*sorted(ends), *(line for line in ran.stdout.splitlines() if line not in progress)]
        self._note(f"{command} {' '.join(arguments)} {about}", [f"exit code {ran.returncode}", *lines])

    def _of_sweep(self, results: Path) -> None:
        """What a sweep has left, and a report of it."""
        self._files("runs/tiny")
        stored = json.loads((results / "results.json").read_text())
        self._note("results.json", {**stored, "arms": {arm["arm"]: arm for arm in stored["arms"]}})
        self._note("sweep.json", json.loads((results / "sweep.json").read_text()))
        self._mlflow(results / "mlflow.db")
        journal = [json.loads(line) for line in (results / "study.journal").read_text().splitlines()]
        self._note("journal", sorted(json.dumps({key: e[key] for key in sorted(e.keys() - VARYING)}) for e in journal))
        logged = re.findall(r"(?m)^\S+ \S+ ([A-Z]+) \S+: (.*)", (results / "sweep.log").read_text())
        self._note("log", sorted({self._replaced(" ".join(line)) for line in logged}))
        names = [str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()]
        self._note("all files", sorted(map(self._replaced, names)))
        for arm in stored["arms"]:
            arm["minutes"] = 1.5
        stored["budget"]["minutes"] = 12.0
        stored["machine"] |= {"cpu": "CPU", "memory_gib": 8.0, "python": "3", "system": "Linux"}
        stored["versions"] = dict.fromkeys(stored["versions"], "1.2.3")
        (results / "results.json").write_text(json.dumps(stored))
        self._run("report", "tiny")
        for path in (results / "report.html", results / "report.md"):
            self._note(f"report's {path.name}", path.read_text().replace("><", ">\n<").splitlines())

    def _files(self, place: str) -> None:
        """The files whose form does not vary: artifacts, what came of trials, hypotheses, tables."""
        paths = sorted(path for path in (self._folder / place).rglob("*") if "mlartifacts" not in path.parts)
        for path in paths:
            name = str(path.relative_to(self._folder))
            if path.suffix == ".safetensors":
                self._record |= _tensors(name, load_file(path))
            elif path.suffix in (".hyp", ".ref", ".src", ".md", ".yaml") and not path.stem.startswith("report"):
                self._note(name, path.read_text().splitlines())
            elif re.search(r"(result|test|dev|_config|prefixray)\.json$", path.name):
                self._note(name, json.loads(path.read_text()))

    def _mlflow(self, path: Path) -> None:
        """Parameters, tags and last metrics of every run, by its name, and how many points its curves have."""
        with sqlite3.connect(path) as database:
            for table in ("params", "tags", "latest_metrics", "metrics"):
                what = "count(*)" if table == "metrics" else "t.value"
                query = f"select name, key, {what} from {table} t join runs using (run_uuid) group by name, key"
                for name, key, value in database.execute(query):
                    self._note(f"mlflow {name} {table}", {key: value})

    def _note(self, name: str, value: object) -> None:
        """Take an entry into the record, a nested one as several; lists of texts are one, as text."""
        if isinstance(value, dict):
            for key in value.keys() - VARYING:
                self._note(f"{name} {key}", value[key])
        elif isinstance(value, list) and value and all(isinstance(line, str) for line in value):
            self._record[name] = self._replaced("\n".join(value))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self._note(f"{name} {index}", inner)
        else:
            self._record[name] = self._replaced(value) if isinstance(value, str) else value

    def _replaced(self, text: str) -> str:
        """A text without what varies."""
        text = text.replace(str(self._folder), "FOLDER")
        for pattern, word in REPLACED:
            text = re.sub(pattern, word, text)
        return text


def _tensors(name: str, tensors: dict[str, torch.Tensor]) -> Record:
    """A checksum of the tensors; of those that rounding may change, shapes and two norms."""
    if not PACKED.search(f"{name} tensor"):
        content = [f"{key} {t.dtype} {tuple(t.shape)} ".encode() + t.numpy().tobytes() for key, t in tensors.items()]
        return {f"{name} sha256": hashlib.sha256(b"".join(sorted(content))).hexdigest()}
    double = {key: tensor.double() for key, tensor in tensors.items()}
    weighted = {key: t.flatten() * torch.linspace(0.1, 1.0, t.numel(), dtype=torch.double) for key, t in double.items()}
    norms = {key: [str(tuple(t.shape)), float(t.norm()), float(weighted[key].norm())] for key, t in double.items()}
    return {f"{name} tensor {key}": value for key, value in norms.items()}


def _same(key: str, one: object, other: object) -> bool:
    """Whether two entries are equal, to 1e-4 where a number depends on who was in a pack."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(key, a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float) and PACKED.search(key):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return type(one) is type(other) and one == other


def _difference(key: str, one: object, other: object) -> Iterator[str]:
    """An entry's difference, line by line."""
    yield f"--- {key}"
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (one, other)]
    yield from list(difflib.unified_diff(*(text.splitlines() for text in texts), n=0, lineterm=""))[2:42]


def make_bases(folder: Path) -> None:
    """A GPT-2 that has learnt to say a few sentences, a random BART, the sentences, and a prefix of the original's."""
    words = product(("The Eagle", "Aromi", "The Mill"), ("Thai", "French", "Chinese"), ("pub", "coffee shop"))
    rows = [(f"name : {a} | Type : {b} | food : {c}", f"{a} is a {b} that serves {c} food.") for a, c, b in words]
    lines = [json.dumps({"source": source, "target": target}) for source, target in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    texts = [text for row in rows for text in row]
    torch.manual_seed(1)
    tokenizer = _tokenizer(texts, "<|endoftext|>")
    sizes = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": len(tokenizer)}
    gpt2 = GPT2LMHeadModel(GPT2Config(initializer_range=0.1, bos_token_id=0, eos_token_id=0, **sizes))
    _pretrain(gpt2, [tokenizer(f" {source} <|endoftext|> {target} <|endoftext|>").input_ids for source, target in rows])
    gpt2.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tokenizer = _tokenizer(texts, "<s>", "</s>", "<pad>")
    tokenizer.save_pretrained(folder / "bart")
    layers = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    wide = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3, "vocab_size": len(tokenizer)}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 1}
    BartForConditionalGeneration(BartConfig(**layers, **wide, **ids)).save_pretrained(folder / "bart")
    shapes = {"wte.weight": (5, 32), "control_trans.0.weight": (7, 32), "control_trans.0.bias": (7,)}
    shapes |= {"control_trans.2.weight": (128, 7), "control_trans.2.bias": (128,)}
    (folder / "original").mkdir()
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "original" / "pytorch_model.bin")


def _tokenizer(texts: Sequence[str], *special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE; with three special tokens an encoder-decoder's, the first two around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    known = {"special_tokens": list(special), "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False, **known))
    named = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=False))
    if len(special) == 3:
        around = {"single": f"{special[0]} $A {special[1]}", "special_tokens": [(special[0], 0), (special[1], 1)]}
        tokenizer.post_processor = processors.TemplateProcessing(**around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": special[0], **named})


def _pretrain(model: GPT2LMHeadModel, rows: Sequence[Sequence[int]]) -> None:
    """Some steps on whole rows, without dropout."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
