"""Settings of the data: which images, how they are resized and augmented, what is held out for a
search.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdr.config.settings import Count, Settings, Share

SHAPE_CLASSES = ("circle", "square", "triangle", "star", "ring", "cross", "hexagon", "crescent")


class Resize(Settings):
    """How an image is brought to size. Exactly one of `square_px` and `short_side_px` is set."""

    square_px: Count | None = None
    """Longer side in pixels; every batch is padded to this square."""
    short_side_px: tuple[Count, ...] | None = None
    """Shorter side in pixels. Several values: one is drawn per image and epoch in training, the
    last is used in evaluation."""
    long_side_px: Count = 1333
    """Limit of the longer side in pixels, with `short_side_px`."""

    @model_validator(mode="after")
    def _one_of(self) -> "Resize":
        if (self.square_px is None) == (self.short_side_px is None):
            raise ValueError(
                "needs exactly one of square_px and short_side_px, got "
                f"{'neither' if self.square_px is None else 'both'}"
            )
        if self.short_side_px is not None and not self.short_side_px:
            raise ValueError("short_side_px: needs at least 1 value, got []")
        return self


class Augment(Settings):
    """Random changes of training images. Each draw is addressed by (seed, epoch, image id)."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""
    colour_jitter: Share = 0.0
    """Strength of random brightness, contrast and saturation changes; 0 is off."""


class _Data(Settings):
    search_split: Annotated[float, Field(ge=0)] = 0.0
    """Images held out of the training set, on which the trial is evaluated instead of the
    validation set.

    A share of the training images below 1, or a number of images from 1 on; 0: evaluate on the
    validation set. A search selects on this split, so that the validation set stays unseen until
    the final runs. """
    augment: Augment = Augment()
    """Random changes of training images."""
    aspect_ratio_grouping: bool = False
    """Fill a batch with images of similar aspect ratio, which saves padding."""


class ShapesData(_Data):
    """Generated shapes in COCO format: written to disk once, from a seed. Needs no download."""

    dataset: Literal["shapes"]
    """`shapes`: generated images."""
    image_size_px: Annotated[int, Field(ge=32, le=1024)] = 128
    """Side of the square images in pixels."""
    num_train: Count = 512
    """Training images, the search split included."""
    num_val: Count = 128
    """Validation images."""
    num_classes: Annotated[int, Field(ge=1, le=len(SHAPE_CLASSES))] = 6
    """How many of the shape classes appear."""
    object_size: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        12 / 128,
        60 / 128,
    )
    """Smallest and largest diameter of a shape, as shares of the image's side; small ones are more
    frequent."""
    seed: int = 0
    """Seed of the images; independent of the trial's seed."""
    resize: Resize | None = None
    """Resizing; unset: images keep the size that they were generated in."""

    @model_validator(mode="after")
    def _sizes_rise(self) -> "ShapesData":
        if not self.object_size[0] < self.object_size[1]:
            raise ValueError(f"object_size: needs smallest < largest, got {list(self.object_size)}")
        return self

    @model_validator(mode="after")
    def _split_leaves_images(self) -> "ShapesData":
        held_out = (
            self.search_split if self.search_split >= 1 else self.search_split * self.num_train
        )
        if held_out >= self.num_train:
            raise ValueError(
                f"search_split: must leave training images, got {self.search_split:g} of "
                f"num_train={self.num_train}"
            )
        return self


class CocoData(_Data):
    """A data set in COCO format on disk. Relative paths are relative to the study file."""

    dataset: Literal["coco"]
    """`coco`: images and annotation files in COCO format."""
    train_images: str
    """Folder of the training images."""
    train_annotations: str
    """JSON file of the training annotations."""
    val_images: str
    """Folder of the validation images."""
    val_annotations: str
    """JSON file of the validation annotations."""
    resize: Resize = Resize(short_side_px=(800,), long_side_px=1333)
    """Resizing; the usual 800 x 1333 by default."""
    aspect_ratio_grouping: bool = True
    """Fill a batch with images of similar aspect ratio, which saves padding."""


DataConfig = Annotated[ShapesData | CocoData, Field(discriminator="dataset")]
