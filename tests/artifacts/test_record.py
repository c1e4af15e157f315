"""An artifact may come from anyone: what is not one is refused with what differs, exit code 2 and no traceback."""

import ast
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.json_mutation import change, json_values
from support.own_code import write_own_code

from prefixray import decode
from prefixray.artifacts.record import check_new, check_record
from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import OpenBase, open_base
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base, load_base, outline_base
from prefixray.model.binding.binder import Binder

ROOT = Path(__file__).resolve().parents[2]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def artifact(tiny_gpt2: Base, tmp_path: Path) -> Path:
    """A whole prefix artifact."""
    trial = PrefixTrial(preseqlen=3, mid_dim=None, init_token=None)
    method = build_method(trial, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)
    config, task = TrialConfig(arm="a", learning_rate=1e-3, num_steps=3, method=trial), TaskConfig(name="e2e")
    meta = artifact_meta(tiny_gpt2, config, task=task, template=make_template(tiny_gpt2, task).record())
    save_artifact(tmp_path / "artifact", method.artifact(), meta)
    return tmp_path / "artifact"


def _sign(folder: Path, body: dict[str, Any]) -> None:
    """Write a record with a checksum that is right for it, as somebody would who means harm."""
    body.pop("sha256", None)
    tensors = (folder / "prefix.safetensors").read_bytes()
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode() + tensors).hexdigest()
    (folder / "prefix_config.json").write_text(json.dumps({**body, "sha256": digest}))


def _set(*path: str, to: object) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = to

    return edit


def _drop(*path: str) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return edit


REFUSED: dict[str, tuple[Edit, str]] = {
    "no format": (_drop("format"), "artifact format None; this prefixray reads format"),
    "no base": (_drop("base"), "base: field required"),
    "no digest": (_drop("base", "digest"), "base.digest: field required"),
    "no method": (_drop("config", "method"), "config.method: field required"),
    "a text for a number": (_set("config", "method", "preseqlen", to="3"), "config.method.preseqlen: input should be"),
    "a list for the configuration": (_set("config", to=[]), "config: input should be"),
    "an unknown key": (_set("config", "method", "width", to=1), "config.method.width: extra inputs"),
    "another precision": (_set("precision", to="int8"), "precision: input should be 'fp32', 'bf16' or '4bit'"),
    "an unknown setting": (_set("decoding", to={"beams": 3}), "no such setting: beams"),
    "no beams": (_set("decoding", to={"num_beams": 0}), "num_beams"),
    "another method's file": (
        _set("method", to="lora"),
        "method: 'lora' with a configuration of 'prefix', in a file of",
    ),
    "another length": (
        _set("config", "method", "preseqlen", to=4),
        "decoder.key: numbers of shape (2, 4, 3, 8), where its configuration makes numbers of shape (2, 4, 4, 8)",
    ),
    "another base": (_set("base", "digest", to="0" * 16), "made for"),
    "other sizes": (_set("base", "shape", "hidden_size", to=33), "base hidden_size: made for 33, "),
    "a giant": (_set("config", "method", "mid_dim", to=10**9), "config.method.mid_dim: 1000000000: fits no base"),
    "a token beyond the vocabulary": (
        _set("template", "eos_id", to=10**6),
        "template: token 1000000: the base has 320",
    ),
    "an encoder's template": (_set("template", "is_encoder_decoder", to=True), "is not that of a decoder-only base"),
    "no template": (_set("template", to={}), "template: form: field required"),
    "a template of numbers": (_set("template", "form", to=[1, 2]), "template: form.0: input should be a valid string"),
    "a base outside its package": (
        _set("base", "name", to="torch:../../../../etc/passwd"),
        "must name a file inside torch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_record_that_is_wrong_is_refused_with_what_differs(
    artifact: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    edit, reason = REFUSED[case]
    body = json.loads((artifact / "prefix_config.json").read_text())
    edit(body)
    _sign(artifact, body)
    assert decode.main([str(artifact)]) == 2
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said


def test_an_artifact_of_an_earlier_version_whose_recipe_has_an_order_binds(artifact: Path, tiny_gpt2: Base) -> None:
    body = json.loads((artifact / "prefix_config.json").read_text())
    source = "name : The Eagle"
    wanted = open_base(tiny_gpt2.name).bind(artifact).generate([source])
    body["config"]["order"] = "pairs"
    _sign(artifact, body)
    assert open_base(tiny_gpt2.name).bind(artifact).generate([source]) == wanted


def test_a_key_prefix_that_is_missing_in_the_tensors_is_named(artifact: Path, tiny_gpt2: Base) -> None:
    body = json.loads((artifact / "prefix_config.json").read_text())
    body.pop("sha256")
    save_artifact(artifact, {"decoder.key": torch.zeros(2, 4, 3, 8), "more": torch.zeros(2, dtype=torch.int64)}, body)
    with pytest.raises(UserError) as refused:
        open_base(tiny_gpt2.name).bind(artifact)
    assert refused.value.problems == (
        "artifact: decoder.value: no tensor, where its configuration makes numbers of shape (2, 4, 3, 8)",
        "artifact: more: int64 of shape (2,), where its configuration makes no tensor",
    )


def test_what_is_no_artifact_is_said(tmp_path: Path, tiny_gpt2: Base) -> None:
    (tmp_path / "some.txt").write_text("x")
    with pytest.raises(UserError, match=r"no artifact here; one has a file prefix_config\.json"):
        open_base(tiny_gpt2.name).bind(tmp_path)


_VALUES = json_values(st.integers(-3, 10**20) | st.floats(), max_size=5, max_leaves=4)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_record_is_refused_or_binds(
    artifact: Path, tiny_gpt2: Base, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    body = json.loads((artifact / "prefix_config.json").read_text())
    body.pop("sha256")
    change(body, data, _VALUES)
    folder = _copy(artifact, tmp_path_factory)
    _sign(folder, body)
    _refused_or_bound(folder, tiny_gpt2)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused(
    artifact: Path, tiny_gpt2: Base, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = _copy(artifact, tmp_path_factory)
    name = data.draw(st.sampled_from(["prefix_config.json", "prefix.safetensors"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    if kind == "cut":
        del content[place:]
    elif kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        content[place:place] = data.draw(st.binary(min_size=1, max_size=4))
    (folder / name).write_bytes(content)
    is_signed = data.draw(st.booleans()) and name == "prefix.safetensors"
    if is_signed:
        _sign(folder, json.loads((folder / "prefix_config.json").read_text()))
    _refused_or_bound(folder, tiny_gpt2)


def _copy(artifact: Path, factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact, folder)
    return folder


def _refused_or_bound(folder: Path, base: Base) -> None:
    try:
        opened = _OPEN.get(base.name) or _OPEN.setdefault(base.name, open_base(base.name))
        bound = opened.bind(folder, decoding={"num_beams": 1, "max_new_tokens": 2})
        assert len(bound.generate(["name : The Mill"])) == 1
    except UserError as error:
        assert error.problems and all(problem.strip() for problem in error.problems)


_OPEN: dict[str, OpenBase] = {}


def test_a_record_of_any_type_is_checked() -> None:
    with pytest.raises(UserError, match="artifact format None"):
        check_record("here", {}, "prefix")


def test_python_code_of_a_base_is_run_only_where_it_is_trusted(tiny_gpt2: Base, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    was_run = write_own_code(folder, tiny_gpt2)
    for load in (load_base, outline_base):
        told = "brings Python code of its own; read it, then allow it: trust_remote_code: true beside base"
        with pytest.raises(UserError, match=told):
            load(str(folder))
    assert not was_run.exists()
    assert load_base(str(folder), trust_remote_code=True).trusts_code
    assert was_run.exists()


_FORBIDDEN = {
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "joblib": {"load"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
}


def _unsafe(source: str) -> list[str]:
    """The calls in a module that may run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [f"{node.lineno}: imports {name}" for name in _unsafe_imports(node)]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        head, _, last = name.rpartition(".")
        safe = any(
            k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
            for k in node.keywords
        )
        if name == "torch.load" and not safe:
            found.append(f"{node.lineno}: {name} without weights_only=True")
        if name in ("eval", "exec", "__import__") or last in _FORBIDDEN.get(head, ()):
            found.append(f"{node.lineno}: {name}")
        if any(k.arg == "allow_pickle" for k in node.keywords):
            found.append(f"{node.lineno}: {name} with allow_pickle")
        literal = [k for k in node.keywords if k.arg == "trust_remote_code" and isinstance(k.value, ast.Constant)]
        found += [f"{node.lineno}: {name} trusts code" for k in literal if k.value.value is True]  # type: ignore[attr-defined]
    return found


def _unsafe_imports(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return [name for name in names if name in _FORBIDDEN and name != "yaml"]
    return [name for name in names if name in _FORBIDDEN.get(node.module or "", ())]


@pytest.mark.parametrize("path", sorted((ROOT / "prefixray").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_loads_what_could_run_code(path: Path) -> None:
    assert _unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "import pickle",
        "from pickle import loads",
        "yaml.load(f)",
        "numpy.load(f, allow_pickle=True)",
        "f(trust_remote_code=True)",
        "eval('1')",
    ],
)
def test_the_check_sees_what_it_forbids(line: str) -> None:
    assert _unsafe(line) and not _unsafe(
        "torch.load('x', weights_only=True)\nyaml.safe_load(f)\nf(trust_remote_code=yes)"
    )


def test_the_folder_that_a_command_runs_in_is_no_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        with pytest.raises(UserError, match="is the folder that you are in; name a new one"):
            check_new(Path(out))
    check_new(Path("new"))
