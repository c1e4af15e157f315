"""A base that brings Python code of its own."""

import json
import shutil
from pathlib import Path

from prefixray.model.base import Base


def write_own_code(folder: Path, tiny_gpt2: Base) -> Path:
    """Copy the base to this folder as one with its own Python code; the file that appears where the code is run."""
    shutil.copytree(tiny_gpt2.name, folder)
    was_run = folder.parent / "was_run"
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own_gpt",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        f"open({str(was_run)!r}, 'w').close()\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own_gpt'\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    return was_run
