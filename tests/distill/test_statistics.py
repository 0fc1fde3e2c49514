import pytest
import torch
from torch import Tensor

from kdr.distill.statistics import LevelStd

BATCHES = [
    ([(64, 64), (64, 40)], (64, 64)),
    ([(48, 80)], (48, 80)),
    ([(33, 64), (20, 30), (48, 64)], (48, 64)),
]


def features(
    seed: int, images: int, batch_size: tuple[int, int], offset: float = 0.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grids = [(batch_size[0] // stride, batch_size[1] // stride) for stride in (8, 16)]
    return [
        torch.randn(images, 3, *grid, generator=generator) * (1 + level) + offset
        for level, grid in enumerate(grids)
    ]


@pytest.mark.parametrize("offset", [0.0, 3e4])
def test_std_is_that_of_all_valid_values_at_once(offset: float) -> None:
    spread = LevelStd()
    values: tuple[list[Tensor], list[Tensor]] = ([], [])
    for seed, (sizes, batch_size) in enumerate(BATCHES):
        batch = features(seed, len(sizes), batch_size, offset)
        spread.update(batch, sizes, batch_size)
        for level, x in enumerate(batch):
            stride = 8 * 2**level
            for image, (height, width) in zip(x, sizes, strict=True):
                values[level].append(
                    image[:, : -(-height // stride), : -(-width // stride)].double().flatten()
                )
    expected = [torch.cat(of_level).std(correction=0).item() for of_level in values]
    assert spread.result() == pytest.approx(expected, rel=1e-9)


def test_padding_does_not_change_the_std() -> None:
    clean, dirty = LevelStd(), LevelStd()
    batch = features(0, 1, (64, 64))
    clean.update(batch, [(64, 32)], (64, 64))
    for x in batch:
        x[..., x.shape[-1] // 2 :] = 1e9
    dirty.update(batch, [(64, 32)], (64, 64))
    assert dirty.result() == clean.result()


def test_a_std_without_a_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one update"):
        LevelStd().result()
