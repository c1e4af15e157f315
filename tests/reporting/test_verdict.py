"""The notes under the final table: the smallest differences that can be told, unequal budgets, the winner."""

import pytest
from support.quickstart_results import interval, quickstart_sweep

from prefixray.reporting.tables import render_text
from prefixray.reporting.verdict import Verdict, verdict
from prefixray.results.record import Results


@pytest.fixture
def results() -> Results:
    return quickstart_sweep()


def test_what_cannot_be_told_apart_is_said_for_the_sharpest_and_the_bluntest_comparison(results: Results) -> None:
    told = "40 sources cannot tell apart differences below 7.7 to 8.1 BLEU; all 630 could tell about 1.9 to 2.0."
    assert told in render_text(results)
    results["arms"][2]["difference"] = results["arms"][1]["difference"]
    assert "cannot tell apart differences below 8.1 BLEU; all 630 could tell about 2.0." in render_text(results)
    for arm in results["arms"][1:]:
        arm["difference"] = interval(0.0, 0.0, 0.0)
    assert "the arms differ by as much BLEU on every source, which tells nothing about smaller" in render_text(results)
    results["arms"][2]["difference"] = interval(1.0, -2.0, 4.0)
    assert "cannot tell apart differences below 3.0 BLEU" in render_text(results)


def test_a_winner_was_tested_against_the_second_searched_alike_and_trained_with_several_seeds(results: Results) -> None:
    prefix, finetune = results["arms"][1], results["arms"][3]
    assert "No winner: prefix and adapter are 1.3 BLEU apart, but were not tested against each other." in render_text(
        results
    )
    prefix["scores"]["bleu"]["value"], results["arms"][2]["scores"]["bleu"]["value"] = 68.3, 50.0
    apart = "No winner: prefix and finetune are 12.2 BLEU apart, "
    assert apart + "which may be chance." in render_text(results), "p is 0.61"
    prefix["p_holm"] = 0.01
    assert "0.010  " in render_text(results) and "0.010 *" not in render_text(results), "its interval spans 0"
    prefix["difference"] = interval(12.2, 0.0, 16)
    assert apart + "which may be chance." in render_text(results), "its interval reaches 0"
    prefix["difference"] = interval(12.2, 8, 16)
    assert apart + "but the arms had unequal numbers of trials." in render_text(results)
    finetune["num_trials"] = prefix["num_trials"]
    assert apart + "but the arms had unequal numbers of trials." in render_text(results), "the adapter had one"
    results["arms"][2]["num_trials"] = prefix["num_trials"]
    assert apart + "but with one seed." in render_text(results)
    prefix["seeds"] = prefix["seeds"] * 2
    assert apart + "but with one seed of adapter and of finetune." in render_text(results)
    finetune["seeds"] = finetune["seeds"] * 2
    assert apart + "but with one seed of adapter." in render_text(results)
    results["arms"][2]["seeds"] = finetune["seeds"]
    expected = "Winner: prefix, 12.2 BLEU ahead of finetune; adapter was not tested against prefix."
    assert expected in render_text(results)


def test_a_reference_wins_only_where_it_leads_every_other_arm(results: Results) -> None:
    prefix, adapter, finetune = results["arms"][1:]
    finetune["scores"]["bleu"] = interval(60.0, 58, 62)
    adapter["scores"]["bleu"], adapter["difference"] = interval(57, 55, 59), interval(-3, -4, -2)
    adapter["p_holm"] = 0.003
    prefix["scores"]["bleu"], prefix["difference"], prefix["p_holm"] = interval(56, 45, 67), interval(-4, -15, 8), 0.05
    for one in (prefix, adapter, finetune):
        one["num_trials"], one["seeds"] = 8, one["seeds"] * 2
    assert verdict(results) == Verdict(
        "No winner: finetune and adapter are 3.0 BLEU apart, but prefix is not told apart from finetune."
    )
    prefix["difference"], prefix["p_holm"] = interval(-4, -6, -2), 0.003
    assert verdict(results) == Verdict("Winner: finetune, 3.0 BLEU ahead of adapter.", "finetune")


def test_arms_that_are_trained_on_unequal_numbers_of_examples_are_named(results: Results) -> None:
    for one in results["arms"][1:]:
        one["config"] = {"num_steps": 40, "batch_size": 8, "grad_accumulation": 1}
    assert "unequal" not in render_text(results)
    results["arms"][3]["config"] = {"num_steps": 20, "batch_size": 12, "grad_accumulation": 5}
    expected = "trained on unequal numbers of examples: prefix 320, adapter 320, finetune 1,200"
    assert expected in render_text(results).splitlines()


def test_arms_that_were_not_trained_or_chosen_alike_have_no_winner(results: Results) -> None:
    prefix, adapter, finetune = results["arms"][1:]
    prefix["scores"]["bleu"], prefix["difference"], prefix["p_holm"] = interval(68.3, 60, 70), interval(12, 8, 16), 0.01
    adapter["scores"]["bleu"]["value"] = 50.0
    for one in (prefix, adapter, finetune):
        one["num_trials"], one["seeds"] = 8, one["seeds"] * 2
        one["config"] = {"num_steps": 40, "batch_size": 8, "grad_accumulation": 1, "eval_every": 10}
    results["rungs"] = [10, 25]
    assert "Winner: prefix, 12.2 BLEU ahead of finetune; adapter was" in render_text(results)
    adapter["config"] = {**prefix["config"], "eval_every": None}
    text = render_text(results)
    assert "chosen from unequal numbers of checkpoints: prefix 5, adapter 3, finetune 5" in text.splitlines()
    apart = "No winner: prefix and finetune are 12.2 BLEU apart, but the arms had unequal numbers of"
    assert f"{apart} checkpoints." in text and "Winner:" not in text
    adapter["config"] = {**prefix["config"], "batch_size": 4}
    assert f"{apart} examples." in render_text(results)
    adapter["config"], adapter["num_trials"] = {**prefix["config"], "num_steps": 80}, 1
    assert f"{apart} trials and of examples and of checkpoints." in render_text(results)


def test_a_lower_error_rate_wins(results: Results) -> None:
    results["metric"], results["metrics"] = "ter", ["ter"]
    for one, value in zip(results["arms"], (95.0, 40.0, 56.0, 55.0), strict=True):
        one["scores"]["ter"] = interval(value, value - 1, value + 1)
        one["num_trials"], one["seeds"] = 8, one["seeds"] * 2
    results["arms"][1]["p_holm"], results["arms"][1]["difference"] = 0.01, interval(-15, -18, -12)
    assert "Winner: prefix, 15.0 TER ahead of finetune; adapter" in render_text(results)
