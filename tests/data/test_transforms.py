import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kdr.config.data import Augment, Resize
from kdr.data.transforms import EvalTransform, TrainTransform, resized_size


@pytest.fixture
def sample() -> tuple[Tensor, Tensor, Tensor]:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8))
    return (
        image,
        torch.tensor([[0.0, 0.0, 30.0, 20.0], [10.0, 5.0, 60.0, 40.0]]),
        torch.tensor([2, 0]),
    )


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    short=st.integers(1, 1000),
    long=st.integers(1, 1500),
    draw=st.floats(0, 1),
)
def test_the_short_side_is_reached_unless_the_long_side_limits_it(
    height: int, width: int, short: int, long: int, draw: float
) -> None:
    size = resized_size(height, width, Resize(short_side_px=(short,), long_side_px=long), draw=draw)
    assert max(size) <= long
    assert min(size) == short or max(size) == long or min(size) == 1
    assert (height <= width) == (size[0] <= size[1]) or size[0] == size[1]


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), square=st.integers(1, 1000))
def test_the_long_side_fills_the_square(height: int, width: int, square: int) -> None:
    assert max(resized_size(height, width, Resize(square_px=square))) == square


def test_pixels_are_resized_as_pil_does_and_boxes_accordingly(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    image, boxes, labels = sample
    resized, resized_boxes, kept = EvalTransform(Resize(short_side_px=(400, 20)))(
        image, boxes, labels
    )
    expected = np.asarray(
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((30, 20), Image.Resampling.BILINEAR)
    )
    assert resized.dtype == torch.uint8
    assert np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    assert torch.equal(resized_boxes, boxes / 2)
    assert torch.equal(kept, labels)


def test_without_a_size_nothing_changes(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(EvalTransform(None)(*sample), sample, strict=True))


def test_a_flip_mirrors_pixels_and_boxes(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    image, boxes, _ = TrainTransform(None, Augment(flip=1), seed=0)(*sample, epoch=0, image_id=1)
    assert torch.equal(image, sample[0].flip(2))
    assert boxes.tolist() == [[30, 0, 60, 20], [0, 5, 50, 40]]
    image, boxes, _ = TrainTransform(None, Augment(flip=0), seed=0)(*sample, epoch=0, image_id=1)
    assert torch.equal(image, sample[0])


def test_draws_depend_only_on_seed_epoch_and_image(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    def flips(seed: int, epoch: int) -> list[bool]:
        transform = TrainTransform(None, Augment(), seed)
        return [
            not torch.equal(transform(*sample, epoch=epoch, image_id=i)[0], sample[0])
            for i in range(64)
        ]

    before = torch.get_rng_state()
    assert flips(0, 0) == flips(0, 0)
    assert flips(0, 0) != flips(0, 1)
    assert flips(0, 0) != flips(1, 0)
    assert 16 < sum(flips(0, 0)) < 48
    assert torch.equal(torch.get_rng_state(), before)


def test_enabling_colours_or_scales_does_not_change_flips(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    plain = TrainTransform(None, Augment(), 0)
    busy = TrainTransform(Resize(short_side_px=(40, 20)), Augment(colour_jitter=0.5), 0)
    for image_id in range(16):
        flipped = plain(*sample, epoch=3, image_id=image_id)[1][0, 0] > 0
        assert (busy(*sample, epoch=3, image_id=image_id)[1][0, 0] > 0) == flipped


def test_every_short_side_is_drawn_and_a_draw_is_reproducible(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    transform = TrainTransform(Resize(short_side_px=(20, 30, 40)), Augment(), 0)
    heights = [transform(*sample, epoch=0, image_id=i)[0].shape[1] for i in range(60)]
    assert {heights.count(side) > 9 for side in (20, 30, 40)} == {True}
    assert heights == [transform(*sample, epoch=0, image_id=i)[0].shape[1] for i in range(60)]


def test_colours_change_within_their_strength_and_boxes_do_not(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = set()
    for image_id in range(40):
        image, boxes, _ = TrainTransform(None, Augment(flip=0, colour_jitter=0.3), 0)(
            grey, sample[1][:0], sample[2][:0], epoch=0, image_id=image_id
        )
        # a uniform grey shows brightness alone
        assert len(set(image.flatten().tolist())) == 1
        assert 69 <= int(image[0, 0, 0]) <= 131
        assert boxes.shape == (0, 4)
        values.add(int(image[0, 0, 0]))
    assert len(values) > 10


def test_a_box_without_area_after_clipping_is_dropped_with_its_label(
    sample: tuple[Tensor, Tensor, Tensor],
) -> None:
    image, boxes, labels = sample
    outside = torch.cat([torch.tensor([[70.0, 5.0, 90.0, 9.0]]), boxes])
    _, kept, kept_labels = EvalTransform(None)(image, outside, torch.tensor([1, 2, 0]))
    assert torch.equal(kept, boxes)
    assert torch.equal(kept_labels, labels)
