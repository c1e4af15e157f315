"""What people look at, in Chromium: the report on a desk and on a phone; of a real sweep, MLflow's page and Optuna's.

`pip install -e '.[browser]'` brings what drives it; Chromium itself comes from the system. Without either, skipped.
"""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.example_results import finished_sweep

from prefixray.reporting.page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]' brings playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
WALL = {"wall": (2200, 1100)}  # MLflow draws only the columns that are in sight


class Look:
    """An open page with everything it has complained of or asked for."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(chromium: "Browser", url: str, *, size: str, scripts: bool = True) -> Iterator[Look]:
    width, height = {**SIZES, **WALL}[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, java_script_enabled=scripts)
    look = Look(context.new_page())
    look.page.goto(url)
    yield look
    context.close()


def table(page: "Page", number: int = 0) -> list[dict[str, str]]:
    """A table of the page as it is shown, a row each, by the heads of its columns."""
    found = page.locator("table").nth(number)
    heads = found.locator("thead th").all_inner_texts()
    rows = [row.locator("th, td").all_inner_texts() for row in found.locator("tbody tr").all()]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def check_numbers(shown: list[dict[str, str]], results: Mapping[str, Any]) -> None:
    """Whether the final table says what `results.json` says."""
    name, reference = results["metric"], results["reference"]
    score, distance = (next(head for head in shown[0] if head.startswith(start)) for start in ("BLEU", "vs "))
    assert name == "bleu" and distance == f"vs {reference} [95 %]"
    assert [row["arm"] for row in shown] == [arm["arm"] for arm in results["arms"]]
    for row, arm in zip(shown, results["arms"], strict=True):
        value, difference = arm["scores"]["bleu"], arm["difference"]
        assert row[score] == f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
        assert row[distance] == (
            "reference"
            if difference is None
            else f"{difference['value']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    page, _ = write_page(finished_sweep(), tmp_path_factory.mktemp("runs"))
    return page.as_uri()


@pytest.mark.parametrize("size", SIZES)
def test_the_report_asks_for_nothing_complains_of_nothing_and_fits(chromium: "Browser", report: str, size: str) -> None:
    with opened(chromium, report, size=size) as look:
        assert look.requests == [report]
        assert look.complaints == []
        wide = look.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], "the page itself does not scroll sideways; wide tables do so within"
        check_numbers(table(look.page), finished_sweep())  # type: ignore[arg-type]
        assert look.page.locator("article").count() == 20


@pytest.mark.parametrize("size", SIZES)
def test_every_chart_is_drawn_with_its_axes_and_nothing_is_cut_off(chromium: "Browser", report: str, size: str) -> None:
    with opened(chromium, report, size=size) as look:
        charts = look.page.locator("svg").all()
        assert len(charts) == 8
        for chart in charts:
            frame = chart.bounding_box()
            assert frame is not None and frame["height"] > 60
            axis = chart.locator(".x-name").text_content()
            assert axis is not None and axis.endswith(")"), "a unit or a scale"
        boxes = look.page.evaluate(
            "[...document.querySelectorAll('svg text')].map(text => [text.textContent, text.getBoundingClientRect()])"
        )
        for text, box in boxes:
            assert box["left"] >= -1 and box["right"] <= SIZES[size][0] + 1, text
            assert box["height"] >= 9, "letters are large enough to read"


def test_trials_can_be_sorted_and_a_chart_says_what_lies_under_the_pointer(chromium: "Browser", report: str) -> None:
    with opened(chromium, report, size="desk") as look:
        look.page.get_by_text("All trials of the search").click()
        sortable = look.page.locator("table.sortable")
        head = sortable.get_by_role("button", name="dev/loss")
        at = [button.inner_text() for button in sortable.locator("thead button").all()].index("dev/loss")
        first = sortable.locator("tbody tr").first.locator("th, td").nth(at)
        head.click()
        lowest = first.inner_text()
        head.click()
        assert (lowest, first.inner_text()) == ("1.600", "15.000")
        assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"
        tips = look.page.locator("svg title").all_text_contents()
        assert any(tip.startswith("prefix: 58.3 [55.1, 60.7] BLEU") for tip in tips)
        look.page.get_by_text("The numbers").first.click()
        assert look.page.locator("details[open] table").first.is_visible()
        assert look.complaints == []


def test_the_report_is_whole_where_scripts_may_not_run(chromium: "Browser", report: str) -> None:
    with opened(chromium, report, size="phone", scripts=False) as look:
        assert look.page.locator("svg").count() == 9 and look.page.locator("table").first.is_visible()
        assert look.page.locator("thead button").count() == 0, "nothing stands there that does nothing"


def test_colours_are_never_alone_in_telling_arms_apart(chromium: "Browser", report: str) -> None:
    shape = "mark => mark.tagName + (mark.getAttribute('points') || '').trim().split(' ').length"
    with opened(chromium, report, size="desk") as look:
        marks = look.page.locator("svg").first.locator("g .mark").all()
        shapes = [mark.evaluate(shape) for mark in marks]
        assert len(set(shapes)) == len(shapes) > 0


SWEEP = """
name: seen
base: {base}
task: {{name: e2e, num_train: 40, num_dev: 8, num_test: 6}}
train: {{batch_size: 4, num_steps: 12, warmup_steps: 1, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [1, 3, 8]}}
    mid_dim: {{choice: [null, 16]}}
    init_token: pub
    learning_rate: {{log_uniform: [1e-3, 3e-2]}}
  finetune: {{learning_rate: 1e-3}}
search: {{num_trials: 5, concurrency: 2, rungs: [4, 8], keep: 0.5, seed: 3}}
final: {{num_seeds: 1, metric: test/bleu, reference: finetune, num_beams: 2, max_new_tokens: 8}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, base_folders: Mapping[str, Path]) -> Path:
    """The folder of a whole small sweep, as its command leaves it."""
    place = tmp_path_factory.mktemp("real")
    (place / "seen.yaml").write_text(SWEEP.format(base=base_folders["llama"]))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "prefixray.sweep", "seen.yaml"]
    ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return place / "runs" / "seen"


@pytest.mark.slow
@pytest.mark.ray
def test_the_report_of_a_real_sweep_says_what_its_record_says(chromium: "Browser", sweep: Path) -> None:
    results = json.loads((sweep / "results.json").read_text())
    for size in SIZES:
        with opened(chromium, (sweep / "report.html").as_uri(), size=size) as look:
            check_numbers(table(look.page), results)
            assert look.complaints == [] and len(look.requests) == 1


@pytest.mark.slow
@pytest.mark.ray
def test_mlflows_page_shows_trials_below_their_sweep_with_curves_and_files(chromium: "Browser", sweep: Path) -> None:
    from mlflow import MlflowClient

    port, store = free_port(), f"sqlite:///{sweep / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("seen")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    trained = [run for name, run in runs.items() if name not in ("seen", "untuned")]
    best = min(trained, key=lambda run: run.data.metrics.get("dev/loss", math.inf))
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    with served([*command, "--host", "127.0.0.1", "--port", str(port)], port, sweep.parent) as url:
        list_of_runs = f"{url}/#/experiments/{experiment.experiment_id}/runs"
        with opened(chromium, f"{list_of_runs}?viewStateShareKey=trials", size="wall") as look:
            page = look.page
            row = page.locator(".ag-center-cols-container .ag-row")
            page.locator(".ag-header").get_by_text("preseqlen").wait_for(timeout=60_000)
            assert row.count() == 1, "the sweep alone: its trials are folded"
            page.locator(".ag-row button[data-component-id*=runnamecellrenderer]").first.click()
            page.get_by_text("prefix/0", exact=True).first.wait_for()
            assert row.count() == len(runs)
            head = page.locator(".ag-header").inner_text()
            assert all(
                name in head for name in ("dev/loss", "test/bleu", "mid_dim", "learning_rate", "prefixray.state")
            )
            page.get_by_role("button", name="trials", exact=True).click()
            page.get_by_text("best first").click()
            leading = page.locator(".ag-row[row-index='0']").filter(has_text=best.info.run_name)
            leading.first.wait_for()  # flat, and the lowest dev/loss leads
            assert all(request.startswith((url, "data:", "blob:")) for request in look.requests)
        with opened(chromium, f"{list_of_runs}/{best.info.run_id}/model-metrics", size="desk") as look:
            look.page.get_by_text("dev/loss").first.wait_for(timeout=60_000)
            look.page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
        parent = runs["seen"].info.run_id
        with opened(chromium, f"{list_of_runs}/{parent}", size="desk") as look:
            look.page.get_by_text("prefixray.data_digest").first.wait_for(timeout=60_000)
            assert "finetune" in look.page.locator("table").first.inner_text(), "the final table is its description"
        with opened(chromium, f"{list_of_runs}/{parent}/artifacts", size="desk") as look:
            for name in ("report.html", "results.json", "results.md", "sweep.yaml"):
                look.page.get_by_text(name).first.wait_for(timeout=60_000)


@pytest.mark.slow
@pytest.mark.ray
def test_optunas_dashboard_opens_the_study_and_shows_its_best_trial(chromium: "Browser", sweep: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="pip install -e '.[browser]' brings optuna-dashboard")
    results = json.loads((sweep / "results.json").read_text())
    best = min((trial for trial in results["search"] if trial["state"] == "done"), key=lambda trial: trial["dev_loss"])
    port = free_port()
    server = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(server), "--port", str(port), str(sweep / "study.journal")]
    with served(command, port, sweep.parent) as url, opened(chromium, url, size="desk") as look:
        look.page.get_by_text("seen/prefix").first.click()
        look.page.get_by_text(f"{best['dev_loss']}").first.wait_for(timeout=60_000)
        shown = look.page.locator("body").inner_text()
        assert f"Best Trial (number={best['number']})" in shown
        assert "dev/loss" in shown and "Pruned" in shown, "the axis has its name, stopped trials are told from others"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """A web server of its own until the end; its address."""
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        for child in children(process.pid):
            child.kill()
        process.kill()
        process.wait()


def children(pid: int) -> list[Any]:
    import psutil

    return list(psutil.Process(pid).children(recursive=True))
