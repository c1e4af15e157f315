"""The order of examples: a permutation per epoch that can be continued anywhere."""

from prefixray.batching.order import example_indices


def test_an_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    epochs = [example_indices(50 * epoch, 50, num_examples=50, seed=1) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone_and_resumes_anywhere() -> None:
    whole = example_indices(0, 40, num_examples=7, seed=3)
    assert example_indices(0, 40, num_examples=7, seed=4) != whole
    resumed = [example_indices(start, 5, num_examples=7, seed=3) for start in (35, 5, 20)]
    assert resumed == [whole[start : start + 5] for start in (35, 5, 20)]
