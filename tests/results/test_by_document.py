"""The runs of one seed over several documents as one model."""

from pathlib import Path

import numpy as np
import pytest

from prefixray.data import Sourced
from prefixray.results.by_document import Part, score_together
from prefixray.results.hypotheses import sources_about, write_hypotheses
from prefixray.results.likelihoods import Likelihoods, write_likelihoods

METRIC = """\
def rank(hypotheses, references):
    return [sorted(hypotheses).index(text) for text in hypotheses]
"""


def test_a_metric_of_the_users_own_gets_the_hypotheses_about_all_documents_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ranks.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("aromi", "aromi", "mill")
    sources = [Sourced(f"source {index}", ("text",), document=name) for index, name in enumerate(names)]
    parts = [Part(tmp_path / name, name) for name in ("aromi", "eagle", "mill")]  # no question is about the eagle
    for part, texts, nll in zip(parts, (["b", "c"], [], ["a"]), ([1.0, 2.0], [], [3.0]), strict=True):
        write_hypotheses(part.folder, "test", texts, sources_about(sources, part.document))
        write_likelihoods(part.folder, "test", Likelihoods([1] * len(nll), nll, None), {})
    found = score_together(parts, "test", sources, ["ranks:rank", "perplexity"])
    assert found["ranks:rank"].statistics[:, 0].tolist() == [1, 2, 0]
    np.testing.assert_array_equal(found["perplexity"].statistics, [[1, 1], [2, 1], [3, 1]])
