"""Region weights: the cells of a feature map that see the image, foreground or background.

Equations: docs/method.md, F.3. Everything is computed on the device of the boxes, and no step waits
for it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MaskValues = Literal["area", "binary"]

_CHUNK_ELEMENTS = 2**22  # 16 MiB of float32 while the boxes of a level are painted


def valid_cells(
    image_sizes: Sequence[tuple[int, int]],
    batch_size: tuple[int, int],
    grid: tuple[int, int],
    *,
    device: torch.device | str,
) -> Tensor:
    """Marks the cells that touch the unpadded image.

    These are the first ceil(h H / H_b) rows and ceil(w W / W_b) columns.

    Args:
        image_sizes: (height, width) of each image in pixels, before padding.
        batch_size: (height, width) of the padded batch in pixels.
        grid: (H, W) of the feature map in cells.
        device: device of the result.

    Returns:
        (N, H, W) bool.
    """
    if not is_padded(image_sizes, batch_size):
        return torch.ones((len(image_sizes), *grid), dtype=torch.bool, device=device)
    # in integers: the ceiling of a rounded product is sometimes one cell too many
    counts = [
        [
            -(-extent * cells // pixels)
            for extent, cells, pixels in zip(size, grid, batch_size, strict=True)
        ]
        for size in image_sizes
    ]
    rows, columns = sent(torch.tensor(counts), device).unbind(1)
    in_rows = torch.arange(grid[0], device=device) < rows[:, None]
    in_columns = torch.arange(grid[1], device=device) < columns[:, None]
    return in_rows[:, :, None] & in_columns[:, None, :]


def is_padded(image_sizes: Sequence[tuple[int, int]], batch_size: tuple[int, int]) -> bool:
    """Returns whether any image is smaller than its batch, so that a cell may see only padding."""
    return any(tuple(size) != tuple(batch_size) for size in image_sizes)


def padded_boxes(boxes_xyxy: Sequence[Tensor]) -> Tensor:
    """Stacks the boxes of N images into (N, M, 4); filler boxes are outside and cover no cell."""
    # a box at -1 covers row and column -1 alone, which no map has
    return pad_sequence(list(boxes_xyxy), batch_first=True, padding_value=-1.0)


@torch.no_grad()
def foreground_mask(
    boxes_xyxy: Tensor,
    valid: Tensor,
    batch_size: tuple[int, int],
    *,
    values: MaskValues = "area",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the weights of cells under boxes: 1, or 1 / (cells of the box).

    Where boxes overlap, the largest weight counts. A box covers columns
    [floor(x1 W/W_b), ceil(x2 W/W_b)), rows likewise, and at least one cell unless it is outside
    the batch. Boxes are measured against the padded batch, so narrow images in wide batches are not
    stretched.

    Args:
        boxes_xyxy: (N, M, 4) in pixels of the padded batch, see `padded_boxes`.
        valid: (N, H, W) bool, cells that count.
        batch_size: (height, width) of the padded batch in pixels.
        values: `area` or `binary`.
        dtype: dtype of the result.

    Returns:
        (N, H, W) non-negative weights, 0 outside of boxes and where `valid` is False.
    """
    height, width = valid.shape[-2:]
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    rows = _covered(y1, y2, cells=height, pixels=batch_size[0])
    columns = _covered(x1, x2, cells=width, pixels=batch_size[1])
    painted = columns.to(dtype)  # (N, M, W)
    if values == "area":
        num_cells = rows.sum(-1) * columns.sum(-1)
        painted = painted / num_cells.clamp(min=1)[..., None]
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    # A box is the outer product of its rows and columns. In chunks of boxes, because all at once
    # would take memory for boxes x cells: 53 MiB for 100 boxes in 8 images of COCO at P3.
    chunk = max(1, _CHUNK_ELEMENTS // valid.numel())
    for some_rows, some_painted in zip(
        torch.split(rows, chunk, 1), torch.split(painted, chunk, 1), strict=True
    ):
        if some_rows.shape[1]:
            mask = torch.maximum(mask, (some_rows[..., None] * some_painted[:, :, None, :]).amax(1))
    return mask * valid


@torch.no_grad()
def boxes_of_level(boxes_xyxy: Tensor, level: int, num_levels: int) -> Tensor:
    """Keeps the boxes that belong to one of L levels by their size, 0 the finest.

    The level of a box is floor(log2(sqrt(area) / 56 px)), clamped to 0 .. L - 1, which is how
    DeFeat assigns each box to a single level (docs/method.md, F.3).

    Args:
        boxes_xyxy: (N, M, 4) in pixels, see `padded_boxes`.
        level: the level.
        num_levels: L.

    Returns:
        (N, M, 4) with the other boxes replaced by the filler of `padded_boxes`: removing them would
        need their number on the host.
    """
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).double()
    # a box of no area gives -inf, which the clamp sends to the finest level
    levels = torch.floor(torch.log2(sides.prod(-1).sqrt() / 56)).clamp(0, num_levels - 1)
    return torch.where((levels == level)[..., None], boxes_xyxy, -1.0)


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Copies small host values to a device without waiting for it.

    They are pinned first: a copy from pageable memory waits for the GPU.
    """
    if torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def background_mask(foreground: Tensor, valid: Tensor) -> Tensor:
    """Returns 1 in valid cells outside all boxes, else 0: (N, H, W) in the foreground's dtype."""
    return ((foreground == 0) & valid).to(foreground.dtype)


def _covered(low: Tensor, high: Tensor, *, cells: int, pixels: int) -> Tensor:
    """Marks the cells that each box covers along one axis: (N, M, cells) bool.

    At least one cell, unless the box is outside the batch.
    """
    # In double precision the product is exact and the quotient correctly rounded, so an edge on a
    # cell border stays there. The division comes last for the same reason.
    first = torch.floor(low.double() * cells / pixels)
    last = torch.maximum(torch.ceil(high.double() * cells / pixels), first + 1)
    index = torch.arange(cells, device=low.device)
    return (index >= first[..., None]) & (index < last[..., None])
