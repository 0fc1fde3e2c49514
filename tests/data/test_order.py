from hypothesis import given
from hypothesis import strategies as st

from kdr.data.order import training_order


@given(
    num_images=st.integers(1, 80),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_an_order_has_every_image_once_except_an_incomplete_remainder(
    num_images: int, batch_size: int, seed: int, data: st.DataObject
) -> None:
    portrait = data.draw(
        st.none() | st.lists(st.booleans(), min_size=num_images, max_size=num_images)
    )
    order = training_order(num_images, batch_size, seed=seed, epoch=0, portrait=portrait)
    seen = [position for batch in order for position in batch]
    assert len(order) == max(num_images // batch_size, 1)
    assert {len(batch) for batch in order} == {min(batch_size, num_images)}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(num_images))
    if portrait is not None:
        assert all(len({portrait[position] for position in batch}) == 1 for batch in order[:-1])
    assert order == training_order(num_images, batch_size, seed=seed, epoch=0, portrait=portrait)


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = [
        training_order(40, 8, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
