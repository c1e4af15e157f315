"""The order of examples: a permutation per epoch that can be continued anywhere."""

from prefixray.batching.order import Order


def test_an_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    order = Order(50, seed=1)
    epochs = [order.at(50 * epoch, 50) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone_and_resumes_anywhere() -> None:
    whole = Order(7, seed=3).at(0, 40)
    assert Order(7, seed=4).at(0, 40) != whole
    resumed = Order(7, seed=3)
    assert [resumed.at(start, 5) for start in (35, 5, 20)] == [whole[start : start + 5] for start in (35, 5, 20)]
