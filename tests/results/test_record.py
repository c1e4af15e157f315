"""Reading results.json: what is said where there is none, and where it is broken."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.quickstart_results import quickstart_sweep

from prefixray.errors import UserError
from prefixray.results.record import load_results


def test_a_folder_without_results_is_told_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quickstart has no results yet: they come when the search has ended"):
        load_results(tmp_path / "quickstart")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"search": [', "is not JSON"),
        ("[]", 'has no list called "search"'),
        (
            '{"search": [{"arm": "prefix"}]}',
            r"search\[0\]: lacks config, dev_loss, num_steps, number, rung, state, step;",
        ),
        ('{"search": [], "arms": []}', "lacks base, base_digest, decoding"),
    ],
)
def test_a_broken_record_is_named_with_what_it_lacks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: .*" + message):
        load_results(tmp_path)


def test_all_arms_that_lack_something_are_named_at_once(tmp_path: Path) -> None:
    broken: Any = copy.deepcopy(quickstart_sweep())
    del broken["arms"][0]["p"], broken["arms"][2]["scores"]
    (tmp_path / "results.json").write_text(json.dumps(broken))
    with pytest.raises(UserError) as caught:
        load_results(tmp_path)
    assert [problem.split("; ")[0].partition("json: ")[2] for problem in caught.value.problems] == [
        "arms[0]: lacks p",
        "arms[2]: lacks scores",
    ]
