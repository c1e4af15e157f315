"""The way in from Python: what `import prefixray` gives, and how little it takes."""

import subprocess
import sys

import prefixray

NAMES = {
    "Tuned",
    "UserError",
    "__version__",
    "generate_together",
    "load_sweep",
    "open_base",
    "open_sweep",
    "plan_sweep",
    "run_sweep",
}


def test_importing_the_package_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import prefixray; seconds = time.perf_counter() - start;"
        "heavy = sorted({'torch', 'ray', 'transformers', 'pydantic', 'optuna', 'mlflow'} & set(sys.modules));"
        "print(seconds < 0.1, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "[]"]


def test_the_package_gives_what_it_names_and_names_what_it_gives() -> None:
    assert set(prefixray.__all__) == set(dir(prefixray)) == NAMES
    for name in NAMES:
        assert getattr(prefixray, name) is not None
    assert isinstance(prefixray.UserError("x"), Exception)


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    assert not hasattr(prefixray, "no_such_name")
