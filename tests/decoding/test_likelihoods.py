"""What a model makes of the references: the plain formulas on the stock model, and the numbers of training."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.packs import INFIX, NETWORK, SEEDS, trial_of
from support.taught import taught_examples
from support.tiny_bases import MakeBase, stock_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import Template, make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.data import Sourced
from prefixray.data.task_config import TaskConfig
from prefixray.decoding import forced
from prefixray.decoding.likelihoods import read_references
from prefixray.decoding.tuned_model import Tuned
from prefixray.errors import UserError
from prefixray.methods.contract import Method, Untuned
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base
from prefixray.results.hypotheses import write_hypotheses
from prefixray.results.likelihoods import Likelihoods, read_likelihoods, write_likelihoods
from prefixray.results.scores import score_of
from prefixray.training.pack import Pack

NUM_KEPT = 6
METHODS: dict[str, AnyTrial] = {
    "prefix": NETWORK,
    "infix": INFIX,
    "lora": LoraTrial(rank=2),
    "adapter": AdapterTrial(bottleneck=3),
    "finetune": FinetuneTrial(),
}


def sources_of(base: Base) -> list[Sourced]:
    return [
        Sourced(example.source, (example.target, "Another one."), teacher=example.teacher)
        for example in taught_examples(base, NUM_KEPT)
    ]


def template_of(base: Base) -> Template:
    return make_template(base, TaskConfig(name="custom"))


def read(base: Base, method: Method) -> Likelihoods:
    return read_references(Tuned(base, method, template_of(base), DecodingSettings()), sources_of(base))


@pytest.mark.parametrize("architecture", ["llama", "bart"])
@pytest.mark.parametrize("name", METHODS)
def test_the_sums_are_those_of_an_evaluation_in_training(make_base: MakeBase, architecture: str, name: str) -> None:
    if architecture == "bart" and name == "infix":
        pytest.skip("an encoder-decoder has no infixes")
    base = make_base(architecture, torch.float64)
    rows = encode(taught_examples(base, NUM_KEPT), template_of(base))
    pack = Pack(base, rows, pad_id=template_of(base).pad_id)
    trials = {objective: trial_of(METHODS[name], 3e-3, objective=objective) for objective in ("distill", "token_mean")}
    members = {key: pack.admit(key, trial, SEEDS) for key, trial in trials.items()}
    for member in members.values():
        with torch.no_grad():
            for parameter in (one for one in member.method.parameters() if one.requires_grad):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    losses = pack.evaluate(trials, rows)
    found = read(base, members["distill"].method)
    count = sum(row.num_targets for row in rows)
    assert found.divergence is not None and sum(found.num_tokens) == count
    assert math.fsum(found.divergence) / count == pytest.approx(losses["distill"], abs=1e-10)
    assert math.fsum(found.nll) / count == pytest.approx(losses["token_mean"], abs=1e-10)
    assert losses["distill"] > 0.05


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("has_prefix", [False, True])
def test_each_sum_is_the_plain_formula_on_the_stock_model(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch, architecture: str, has_prefix: bool
) -> None:
    """Rows one by one, the whole vocabulary, the prefix as a cache, transformers' own loss."""
    monkeypatch.setattr(forced, "_MOST_TARGETS", 50)  # several batches
    base = make_base(architecture, torch.float64)
    pack = Pack(base, encode(taught_examples(base, NUM_KEPT), template_of(base)), pad_id=0)
    trial = trial_of(PrefixTrial(preseqlen=4, mid_dim=None, init_token=None), 1e-2)
    method = pack.admit("prefix", trial, SEEDS).method if has_prefix else Untuned()
    prefix = method.fold()["decoder"].detach() if isinstance(method, Prefix) else None
    found, stock = read(base, method), stock_model(base)
    divergence, nll, own_loss = zip(*(_by_hand(stock, row, prefix) for row in pack.train), strict=True)
    assert found.divergence == pytest.approx(divergence, abs=1e-9) and found.nll == pytest.approx(nll, abs=1e-9)
    assert found.nll == pytest.approx(own_loss, rel=1e-5), "transformers computes it in fp32"
    corpus = {metric: found.scored(metric).corpus() for metric in ("divergence", "perplexity")}
    count = sum(row.num_targets for row in pack.train)
    assert corpus["divergence"] == pytest.approx(sum(divergence) / count)
    assert corpus["perplexity"] == pytest.approx(math.exp(sum(nll) / count))


def test_without_teachers_there_are_likelihoods_and_no_divergence(tiny_gpt2: Base) -> None:
    sources = [Sourced("name : The Mill", ("The Mill is a pub.",)), *sources_of(tiny_gpt2)[:1]]
    tuned = Tuned(tiny_gpt2, Untuned(), template_of(tiny_gpt2), DecodingSettings())
    found = read_references(tuned, sources)
    assert found.divergence is None and found.scored("perplexity").corpus() > 1
    with pytest.raises(UserError, match="test/divergence: the task has no teacher for these sources; take test/perp"):
        found.scored("divergence")


def test_a_metric_of_likelihoods_is_read_from_its_file_beside_the_hypotheses(tmp_path: Path) -> None:
    sources = [Sourced("a", ("one two",)), Sourced("b", ("three",))]
    write_hypotheses(tmp_path, "test", ["one two", "four"], sources)
    metrics = ["perplexity", "rouge_l", "divergence"]
    with pytest.raises(UserError, match=r"test.likelihoods.json: no such file, or a damaged one"):
        score_of([tmp_path], "test", sources, metrics)
    write_likelihoods(tmp_path, "test", Likelihoods([3, 2], [3.0, 4.0], [0.5, 0.0]), {})
    found = score_of([tmp_path], "test", sources, metrics)
    assert list(found) == metrics
    assert [round(found[metric].corpus(), 4) for metric in metrics] == [round(math.exp(1.4), 4), 50.0, 0.1]
    (tmp_path / "test.likelihoods.json").write_text(json.dumps({"nll": [1.0]}))
    with pytest.raises(UserError, match="a damaged one"):
        read_likelihoods(tmp_path, "test")


def _by_hand(stock: PreTrainedModel, row: Row, prefix: Tensor | None) -> tuple[float, float, float]:
    """A row's summed divergence and negative log-likelihood, and transformers' loss, given a prefix (2, L, K, P, D)."""
    ids, start = torch.tensor([row.ids]), row.num_prompt
    cache = DynamicCache()
    for layer, (keys, values) in enumerate([] if prefix is None else prefix.unbind(1)):
        cache.update(keys[None], values[None], layer)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)
    output = stock(input_ids=ids, labels=labels, past_key_values=cache)
    assert output.logits.dtype == torch.float64 and row.teacher is not None
    likelihoods, kept = output.logits[0, start - 1 : -1].softmax(dim=1), torch.tensor(row.teacher.ids).long()
    q = _outcomes(likelihoods, kept)
    p = torch.tensor([*map(_row, row.teacher.log_p, row.teacher.tail)], dtype=torch.float64).exp()
    p /= p.sum(dim=1, keepdim=True)  # of likelihoods that are kept in fp32
    nll = -likelihoods.gather(1, ids[0, start:, None]).log().sum()
    return float((p * (p / q).log()).sum()), float(nll), float(output.loss) * row.num_targets


def _outcomes(likelihoods: Tensor, kept: Tensor) -> Tensor:
    """The likelihoods of the tokens that are kept, and of all others together, (n, k + 1)."""
    chosen = likelihoods.gather(1, kept)
    return torch.cat([chosen, likelihoods.scatter(1, kept, 0.0).sum(dim=1, keepdim=True)], dim=1)


def _row(log_p: Sequence[float], tail: float) -> list[float]:
    return [*map(float, log_p), float(tail)]
