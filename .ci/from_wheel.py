"""Outside the checkout, with the wheel alone: every module is imported, the corpus and the sweep files are in it.

What a module of prefixray does that is deprecated is an error.
"""

import importlib
import pkgutil
import warnings
from pathlib import Path

warnings.filterwarnings("error", category=DeprecationWarning, module=r"prefixray(\.|$)")  # -W takes no pattern

import prefixray  # noqa: E402
from prefixray.config.files.shipped import shipped_sweeps  # noqa: E402
from prefixray.data import load_task  # noqa: E402
from prefixray.data.task_config import TaskConfig  # noqa: E402

package = Path(prefixray.__file__).parent
assert "site-packages" in package.parts, f"{package} is not the wheel's"
names = [found.name for found in pkgutil.walk_packages([str(package)], "prefixray.") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
task = load_task(TaskConfig(name="e2e"))
assert {"quickstart", "paper/e2e"} <= set(shipped_sweeps()), "the wheel lacks the sweep files"
shown = f"{len(names)} modules, {len(task.train)} training examples of E2E, {len(shipped_sweeps())} sweep files"
print(f"{shown}, from {package}")
