"""Seeds, and the subset of low data that a run trains on."""

from prefixray.config.seeds import CANDIDATE_REPLICATE, subset_of


def test_final_runs_take_turns_on_the_subsets_and_the_search_has_the_first() -> None:
    assert [subset_of(replicate, 5) for replicate in range(1, 11)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert subset_of(0, 5) == subset_of(CANDIDATE_REPLICATE, 5) == 0
    assert {subset_of(replicate, 1) for replicate in (0, 1, 2, 7, CANDIDATE_REPLICATE)} == {0}
