"""Compiles the pretended GPU against the installed torch, once per source and version: python build.py says where."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("gpu.cpp")
FLAGS = ("-O1", "-shared", "-fPIC", "-std=c++20")


def can_build() -> bool:
    """Whether there is a compiler, and a torch without a GPU of its own."""
    return shutil.which("g++") is not None and "+cpu" in importlib.metadata.version("torch")


def library() -> Path:
    """The compiled library; compiling takes about 15 s."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    torch = Path(spec.submodule_search_locations[0])
    about = [SOURCE.read_text(), str(FLAGS), importlib.metadata.version("torch"), str(torch), sys.version]
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefixray-tests"
    made = cache / f"pretend_gpu-{digest}.so"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".so", delete=False) as new:
            _compile(torch, Path(new.name))
        os.replace(new.name, made)  # several processes may compile at once
    return made


def _compile(torch: Path, to: Path) -> None:
    folders = [torch / "include", torch / "include/torch/csrc/api/include", Path(sysconfig.get_paths()["include"])]
    includes = [f"-I{folder}" for folder in folders]
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    subprocess.run(["g++", *FLAGS, *includes, str(SOURCE), "-o", str(to), *libraries], check=True)


if __name__ == "__main__":
    if not can_build():
        sys.exit("no pretended GPU: it needs g++ and a CPU build of torch")
    print(library())
