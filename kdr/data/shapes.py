"""Generates images of shapes in COCO format from a seed, in seconds and without torch.

The task is not trivial for a small detector. Each image has one to six objects, rotated, stretched,
textured and partly hidden by one another, on a noisy background with lines and blobs that belong to
no class. Draws are addressed by (seed, split, number of the image), so a larger data set starts
with the images of a smaller one.
"""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from kdr.config.data import SHAPE_CLASSES, ShapesData
from kdr.errors import StorageError
from kdr.randomness import address

_OVERSAMPLING = 3
"""Shapes are drawn at this multiple of the resolution and averaged, for smooth edges."""
_MIN_VISIBLE_SHARE = 0.3
"""Every object keeps at least this share of its area visible, so that it can be found."""
_MAX_PLACEMENTS = 10
"""An object is left out after this many places without enough room."""
_Floats = NDArray[np.float32]
_Outline = NDArray[np.float64]


@dataclass(frozen=True)
class _Object:
    """A shape in an image: its label, and the box and the number of its visible pixels."""

    label: int
    box_xywh: tuple[int, int, int, int]
    visible_px: int


def write_shapes(config: ShapesData, folder: Path) -> None:
    """Writes `train/`, `val/`, `train.json` and `val.json` into `folder`: JPEGs and annotations.

    The folder is written aside and renamed, so it is either complete or absent. If two processes
    race, one folder remains; both would hold the same images.

    Raises:
        StorageError: if the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            written = Path(aside) / folder.name
            _write_split(config, written, "train", config.num_train)
            _write_split(config, written, "val", config.num_val)
            try:
                written.rename(folder)
            except OSError:
                # renaming fails if another process was first; its folder has the same images
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write the generated shapes ({error.strerror}). Choose another "
            "storage with --storage, or change its permissions"
        ) from error


def _write_split(
    config: ShapesData, folder: Path, split: Literal["train", "val"], num_images: int
) -> None:
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    side = config.image_size_px
    for number in range(num_images):
        rng = np.random.default_rng(address(config.seed, "shapes", split, number))
        pixels, objects = _draw_image(rng, config)
        image_id = number + 1
        file_name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(folder / split / file_name, quality=90)
        images.append({"id": image_id, "file_name": file_name, "width": side, "height": side})
        for shape in objects:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": shape.label + 1,
                "iscrowd": 0,
            }
            annotations.append(
                annotation | {"bbox": list(shape.box_xywh), "area": shape.visible_px}
            )
    categories = [
        {"id": label + 1, "name": name}
        for label, name in enumerate(SHAPE_CLASSES[: config.num_classes])
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def _draw_image(
    rng: np.random.Generator, config: ShapesData
) -> tuple[NDArray[np.uint8], list[_Object]]:
    """Draws one image (side, side, 3) and returns it with its objects, back to front."""
    side = config.image_size_px
    canvas = _background(rng, side)
    owner = np.full((side, side), -1, dtype=np.int8)  # index of the topmost object at each pixel
    labels: list[int] = []
    areas: list[float] = []
    for _ in range(int(rng.integers(1, 7))):
        label = int(rng.integers(config.num_classes))
        for _ in range(_MAX_PLACEMENTS):
            window, coverage, area = _place(rng, SHAPE_CLASSES[label], side, config.object_size)
            covered = coverage > 0.5
            visible = np.bincount(owner[owner >= 0], minlength=len(labels)).astype(np.float64)
            visible -= np.bincount(
                (taken := owner[window][covered])[taken >= 0], minlength=len(labels)
            )
            # Neither this object nor one below it may be mostly hidden: a box around a few pixels
            # is a target that no detector can learn.
            if (
                covered.sum() >= _MIN_VISIBLE_SHARE * area
                and (visible >= _MIN_VISIBLE_SHARE * np.array(areas)).all()
            ):
                _paint(rng, canvas[window], coverage)
                owner[window][covered] = len(labels)
                labels.append(label)
                areas.append(area)
                break
    objects = [_visible_object(owner == i, label) for i, label in enumerate(labels)]
    return _photographed(rng, canvas), objects


def _visible_object(visible: NDArray[np.bool_], label: int) -> _Object:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return _Object(
        label, (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y), int(visible.sum())
    )


def _background(rng: np.random.Generator, side: int) -> _Floats:
    """Draws clouds over a gradient, with lines and irregular blobs that resemble no class."""
    clouds = np.stack([_clouds(rng, side, side) for _ in range(3)], axis=-1) * rng.uniform(20, 70)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    slope = (math.cos(angle) * ramp + math.sin(angle) * ramp[:, None])[..., None] * rng.uniform(
        -40, 40, 3
    ).astype(np.float32)
    pixels = np.clip(clouds + slope + rng.uniform(50, 205, 3).astype(np.float32), 0, 255).astype(
        np.uint8
    )
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 5))):
        ends = (side * rng.uniform(-0.1, 1.1, 4)).tolist()
        pen.line(
            ends, fill=_random_colour(rng), width=max(1, round(side * rng.uniform(0.005, 0.03)))
        )
    for _ in range(int(rng.integers(0, 4))):
        pen.polygon(_blob(rng, side), fill=_random_colour(rng))
    return np.asarray(image, dtype=np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int) -> _Floats:
    """Returns smooth noise (height, width) in about [-1, 1], with 3 to 12 cells along each side."""
    cells = int(rng.integers(3, 13))
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _blob(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(5, 10))))
    radii = side * rng.uniform(0.03, 0.2, len(angles))
    x, y = rng.uniform(0, side, 2)
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _place(
    rng: np.random.Generator, name: str, side: int, object_size: tuple[float, float]
) -> tuple[tuple[slice, slice], _Floats, float]:
    """Places a shape at random in the image.

    The logarithm of the diameter is uniform, so small shapes are more frequent.

    Returns:
        The window around the shape, the covered share (h, w) of each of its pixels, and the area of
        the whole shape in pixels, including parts outside the image.
    """
    diameter = side * math.exp(rng.uniform(math.log(object_size[0]), math.log(object_size[1])))
    angle, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.15, 0.15))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    to_pixels = rotation @ np.diag([stretch, 1 / stretch]) * diameter / 2
    centre = rng.uniform(0.35 * diameter, side - 0.35 * diameter, 2)
    reach = 0.6 * diameter + 1
    (left, top), (right, bottom) = (
        np.maximum(centre - reach, 0).astype(int),
        np.minimum(centre + reach, side).astype(int),
    )
    outline, hole = _outline(name)
    image = Image.new("L", ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING))
    pen = ImageDraw.Draw(image)
    area = 0.0
    for points, sign in ((outline, 1), (hole, -1)):
        if points is not None:
            placed = points @ to_pixels.T + centre
            pen.polygon(
                ((placed - [left, top]) * _OVERSAMPLING).ravel().tolist(),
                fill=255 if sign > 0 else 0,
            )
            area += sign * _polygon_area(placed)
    coverage: _Floats = np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255)
    return (slice(top, bottom), slice(left, right)), coverage, area


def _outline(name: str) -> tuple[_Outline, _Outline | None]:
    """Returns the corners (n, 2) of a shape of radius 1, and those of its hole if it has one."""
    if name == "circle":
        return _arc(0, 2 * math.pi, 1), None
    if name == "ring":
        return _arc(0, 2 * math.pi, 1), _arc(0, 2 * math.pi, 0.55)
    # the unit disc minus the disc of radius 0.75 around (0.55, 0); the circles cross at x = 0.673
    if name == "crescent":
        outer, inner = math.acos(0.673), math.acos((0.673 - 0.55) / 0.75)
        bite = _arc(2 * math.pi - inner, inner, 0.75) + np.array([0.55, 0])
        return np.concatenate([_arc(outer, 2 * math.pi - outer, 1), bite]), None
    if name == "cross":
        arm = [(1, -0.3), (1, 0.3), (0.3, 0.3)]
        quarter_turn = np.array([[0, -1], [1, 0]])
        return (
            np.concatenate(
                [np.array(arm) @ np.linalg.matrix_power(quarter_turn, k).T for k in range(4)]
            ),
            None,
        )
    corners = {"triangle": 3, "square": 4, "hexagon": 6, "star": 10}[name]
    regular = _arc(0, 2 * math.pi, 1, num_points=corners)
    if name == "star":
        regular[1::2] *= 0.42
    return regular, None


def _arc(start: float, end: float, radius: float, num_points: int = 40) -> _Outline:
    angles = np.linspace(start, end, num_points, endpoint=abs(end - start) < 2 * math.pi)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polygon_area(points: _Outline) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _paint(rng: np.random.Generator, canvas: _Floats, coverage: _Floats) -> None:
    """Paints a shape on its window of the canvas, slightly transparent, in a contrasting colour."""
    under = np.einsum("hwc,hw->c", canvas, coverage) / coverage.sum()
    colours = rng.uniform(0, 255, (4, 3)).astype(np.float32)
    contrast = np.linalg.norm(colours - under, axis=1)
    # the first of four colours that is far enough from the background, else the farthest of them
    colour = colours[np.argmax(contrast > 60) if contrast.max() > 60 else np.argmax(contrast)]
    opacity = coverage[..., None] * rng.uniform(0.75, 1)
    fill = np.clip(colour + _texture(rng, *coverage.shape)[..., None] * rng.uniform(0, 45), 0, 255)
    canvas += opacity * (fill - canvas)


def _texture(rng: np.random.Generator, height: int, width: int) -> _Floats:
    """Returns clouds or stripes (height, width) in [-1, 1]."""
    if rng.random() < 0.5:
        return _clouds(rng, height, width)
    y, x = np.mgrid[:height, :width]
    angle, waves = rng.uniform(0, math.pi), rng.uniform(1, 6)
    phase = 2 * math.pi * waves / max(height, width) * (math.cos(angle) * x + math.sin(angle) * y)
    return np.asarray(np.sin(phase), dtype=np.float32)


def _photographed(rng: np.random.Generator, canvas: _Floats) -> NDArray[np.uint8]:
    """Returns the canvas with the blur of a lens and the noise of a sensor."""
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, 0.9))
    )
    noisy = rng.standard_normal(canvas.shape, dtype=np.float32)
    noisy *= rng.uniform(2, 14)
    noisy += np.asarray(image)
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue
