import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdr.distill import masks
from kdr.distill.masks import (
    MaskValues,
    background_mask,
    boxes_of_level,
    foreground_mask,
    is_padded,
    padded_boxes,
    valid_cells,
)
from tests.distill.scenes import Grid

Images = tuple[Grid, list[tuple[int, int]], list[Tensor]]
"""A grid, and the sizes and boxes of images."""

BATCH = (96, 133)
COORDINATE = st.floats(-30, 170, width=32)


@st.composite
def scenes(draw: st.DrawFn) -> Images:
    """Images narrower than their batch, with tiny, outlying and edge boxes.

    The grid need not divide the batch.
    """
    grid = draw(st.tuples(st.integers(1, 14), st.integers(1, 17)))
    sizes, boxes = [], []
    for _ in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(1, BATCH[0])), draw(st.integers(1, BATCH[1]))
        sizes.append((height, width))
        corner = st.tuples(COORDINATE, COORDINATE)
        extent: st.SearchStrategy[tuple[float, float]] = st.one_of(
            st.just((0.8, 0.8)), st.tuples(st.floats(0, 90, width=32), st.floats(0, 90, width=32))
        )
        free = st.tuples(corner, extent).map(
            lambda b: (*b[0], b[0][0] + b[1][0], b[0][1] + b[1][1])
        )
        right_edge = st.just((max(0.0, width - 5.0), 0.0, float(width), float(height)))
        boxes.append(draw(st.lists(st.one_of(free, right_edge), max_size=4)))
    return (
        grid,
        sizes,
        [torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4) for of_image in boxes],
    )


def painted_by_loops(
    boxes: Tensor, size: tuple[int, int], grid: Grid, values: MaskValues
) -> Tensor:
    """One image's mask by the definition in docs/method.md, F.3, cell by cell, in fractions."""
    (H, W), (Hb, Wb), (h, w) = grid, BATCH, size
    mask = [[0.0] * W for _ in range(H)]
    for x1, y1, x2, y2 in ([Fraction(value) for value in box] for box in boxes.tolist()):
        first_column, first_row = math.floor(x1 * W / Wb), math.floor(y1 * H / Hb)
        columns = range(max(0, first_column), min(W, max(math.ceil(x2 * W / Wb), first_column + 1)))
        rows = range(max(0, first_row), min(H, max(math.ceil(y2 * H / Hb), first_row + 1)))
        for i in rows:
            for j in columns:
                seen = i < math.ceil(Fraction(h * H, Hb)) and j < math.ceil(Fraction(w * W, Wb))
                value = 1.0 if values == "binary" else 1 / (len(rows) * len(columns))
                mask[i][j] = max(mask[i][j], value * seen)
    return torch.tensor(mask, dtype=torch.float64)


@pytest.mark.parametrize("values", ["area", "binary"])
@given(scene=scenes())
def test_foreground_equals_a_mask_painted_cell_by_cell(values: MaskValues, scene: Images) -> None:
    grid, sizes, boxes = scene
    valid = valid_cells(sizes, BATCH, grid, device="cpu")
    mask = foreground_mask(padded_boxes(boxes), valid, BATCH, values=values, dtype=torch.float64)
    expected = torch.stack(
        [painted_by_loops(b, size, grid, values) for b, size in zip(boxes, sizes, strict=True)]
    )
    torch.testing.assert_close(mask, expected, rtol=1e-14, atol=0)


@given(scene=scenes())
def test_painting_boxes_in_small_chunks_changes_nothing(scene: Images) -> None:
    grid, sizes, boxes = scene
    valid = valid_cells(sizes, BATCH, grid, device="cpu")
    whole = foreground_mask(padded_boxes(boxes), valid, BATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_CHUNK_ELEMENTS", 1)
        assert torch.equal(foreground_mask(padded_boxes(boxes), valid, BATCH), whole)


@given(scene=scenes())
def test_foreground_and_background_partition_the_valid_cells(scene: Images) -> None:
    grid, sizes, boxes = scene
    valid = valid_cells(sizes, BATCH, grid, device="cpu")
    foreground = foreground_mask(padded_boxes(boxes), valid, BATCH)
    assert torch.equal((foreground > 0).float() + background_mask(foreground, valid), valid.float())


@given(
    image=st.tuples(st.integers(1, BATCH[0]), st.integers(1, BATCH[1])),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corner=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    extent=st.sampled_from([0.0, 0.8, 5.0, 500.0]),
)
def test_every_box_inside_its_image_has_a_cell_on_every_level(
    image: tuple[int, int], grid: Grid, corner: tuple[float, float], extent: float
) -> None:
    y, x = corner[0] * image[0], corner[1] * image[1]
    box = torch.tensor(
        [[x, y, min(x + extent, image[1]), min(y + extent, image[0])]], dtype=torch.float64
    )
    valid = valid_cells([image], BATCH, grid, device="cpu")
    mask = foreground_mask(padded_boxes([box]), valid, BATCH, dtype=torch.float64)
    assert mask.sum().item() == pytest.approx(1.0)


def test_area_mask_sums_to_the_number_of_boxes_if_they_do_not_overlap() -> None:
    boxes = torch.tensor([[0, 0, 40, 40], [64, 0, 96, 31], [0, 64, 8, 96], [100, 60, 100.8, 60.8]])
    valid = valid_cells([BATCH], BATCH, (12, 17), device="cpu")
    assert foreground_mask(padded_boxes([boxes]), valid, BATCH).sum().item() == pytest.approx(4.0)


def test_a_small_box_outweighs_the_large_box_around_it() -> None:
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [16.0, 16.0, 32.0, 24.0]])
    valid = valid_cells([(64, 64)], (64, 64), (8, 8), device="cpu")
    mask = foreground_mask(padded_boxes([boxes]), valid, (64, 64))[0]
    assert mask[2, 2:4].tolist() == [0.5, 0.5]
    assert mask[0, 0].item() == mask[3, 2].item() == 1 / 64


def test_a_box_in_a_narrow_image_of_a_wide_batch_is_not_stretched() -> None:
    # measured against the image (80 px) instead of the batch (160 px), the box would land in
    # columns 16 to 19
    valid = valid_cells([(64, 160), (64, 80)], (64, 160), (8, 20), device="cpu")
    boxes = [torch.zeros(0, 4), torch.tensor([[64.0, 0.0, 80.0, 8.0]])]
    mask = foreground_mask(padded_boxes(boxes), valid, (64, 160), values="binary")
    assert mask[0].sum() == 0
    assert mask[1].nonzero().tolist() == [[0, 8], [0, 9]]


@given(
    size=st.tuples(st.integers(1, 96), st.integers(1, 133)),
    grid=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_a_cell_is_valid_exactly_where_it_meets_the_image(
    size: tuple[int, int], grid: Grid
) -> None:
    cells = valid_cells([size, BATCH], BATCH, grid, device="cpu")
    rows = [Fraction(i * BATCH[0], grid[0]) < size[0] for i in range(grid[0])]
    columns = [Fraction(j * BATCH[1], grid[1]) < size[1] for j in range(grid[1])]
    assert cells[0].tolist() == [[row and column for column in columns] for row in rows]
    assert cells[1].all()


def test_only_a_batch_with_a_smaller_image_is_padded() -> None:
    assert not is_padded([BATCH, BATCH], BATCH)
    assert is_padded([BATCH, (96, 132)], BATCH)


@pytest.mark.parametrize(
    "boxes",
    [[torch.zeros(0, 4)] * 2, [torch.zeros(0, 4), torch.tensor([[200.0, 5.0, 260.0, 9.0]])]],
)
def test_without_a_box_in_the_batch_there_is_no_foreground(boxes: list[Tensor]) -> None:
    valid = valid_cells([BATCH, BATCH], BATCH, (6, 8), device="cpu")
    mask = foreground_mask(padded_boxes(boxes), valid, BATCH)
    assert mask.shape == (2, 6, 8)
    assert mask.sum() == 0
    assert background_mask(mask, valid).all()


class LargestResult(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Records the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.num_bytes = max(self.num_bytes, result.numel() * result.element_size())
        return result


def test_a_hundred_boxes_per_image_at_the_finest_level_of_coco_stay_small() -> None:
    boxes = [torch.rand(100, 4).mul(400) + torch.tensor([0, 0, 400, 400]) for _ in range(8)]
    valid = valid_cells([(800, 1333)] * 8, (800, 1333), (100, 167), device="cpu")
    with LargestResult() as largest:
        foreground_mask(padded_boxes(boxes), valid, (800, 1333))
    assert largest.num_bytes <= 17 * 2**20


def test_masks_never_wait_for_the_device() -> None:
    # reading a value from the meta device raises
    valid = valid_cells([(96, 133), (50, 60)], BATCH, (12, 17), device="meta")
    boxes = padded_boxes([torch.zeros(3, 4, device="meta"), torch.zeros(1, 4, device="meta")])
    foreground = foreground_mask(boxes, valid, BATCH)
    assert background_mask(foreground, valid).shape == (2, 12, 17)


def box(width: float, height: float) -> list[float]:
    return [10.0, 20.0, 10.0 + width, 20.0 + height]


@pytest.mark.parametrize(
    ("sides", "level"),
    [
        ((0.0, 0.0), 0),
        ((55, 55), 0),
        ((111, 112), 0),
        ((112, 112), 1),
        ((14, 896), 1),
        ((223, 223), 1),
        ((224, 224), 2),
        ((900, 900), 2),
    ],
)
def test_a_box_belongs_to_the_one_level_of_its_size(sides: tuple[float, float], level: int) -> None:
    boxes = padded_boxes([torch.tensor([box(*sides)]), torch.tensor([box(30, 30), box(130, 130)])])
    of_levels = [boxes_of_level(boxes, i, 3) for i in range(3)]
    assert [(of_level[0, 0] == boxes[0, 0]).all().item() for of_level in of_levels] == [
        i == level for i in range(3)
    ]
    valid = valid_cells([(1024, 1024)] * 2, (1024, 1024), (64, 64), device="cpu")
    masks = [
        foreground_mask(of_level, valid, (1024, 1024), values="binary") for of_level in of_levels
    ]
    assert [mask[0].any().item() for mask in masks] == [i == level for i in range(3)]
    assert [mask[1].any().item() for mask in masks] == [True, True, False]


def test_sorting_boxes_by_size_never_waits_for_the_device() -> None:
    assert boxes_of_level(torch.zeros(2, 3, 4, device="meta"), 1, 5).shape == (2, 3, 4)
