"""Settings of the data: images, resizing, augmentation, and the search split."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdr.config.settings import Count, Settings, Share

SHAPE_CLASSES = ("circle", "square", "triangle", "star", "ring", "cross", "hexagon", "crescent")


class Resize(Settings):
    """How images are resized. Set exactly one of `square_px` and `short_side_px`."""

    square_px: Count | None = None
    """Longer side in pixels; the shorter side follows from the aspect ratio, and every batch is
    padded to this square."""
    short_side_px: tuple[Count, ...] | None = None
    """Shorter side in pixels. With several values, training draws one per image and epoch, and
    evaluation uses the last."""
    long_side_px: Count = 1333
    """Upper limit of the longer side in pixels. Used only with `short_side_px`."""

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
    """Random augmentation of training images. The draws for an image depend only on (seed, epoch,
    image id).
    """

    flip: Share = 0.5
    """Probability of a horizontal flip."""
    colour_jitter: Share = 0.0
    """Strength of random brightness, contrast and saturation changes; 0 is off."""


class _Data(Settings):
    search_split: Annotated[float, Field(ge=0)] = 0.0
    """Training images to hold out and evaluate on, instead of the validation set.

    Below 1: a share of the training images. 1 or more: a number of images. 0: hold out none and
    evaluate on the validation set. Set it for a search: trials are then selected on these images,
    and the validation set stays unseen until the final runs."""
    augment: Augment = Augment()
    """Random augmentation of training images."""
    aspect_ratio_grouping: bool = False
    """Put images of similar aspect ratio in one batch, which saves padding."""


class ShapesData(_Data):
    """Generated images of shapes, in COCO format. They are written to disk once and need no
    download.
    """

    dataset: Literal["shapes"]
    """`shapes`: generated images."""
    image_size_px: Annotated[int, Field(ge=32, le=1024)] = 128
    """Side of the square images in pixels."""
    num_train: Count = 512
    """Number of training images, including those of `search_split`."""
    num_val: Count = 128
    """Number of validation images."""
    num_classes: Annotated[int, Field(ge=1, le=len(SHAPE_CLASSES))] = 6
    """Number of shape classes, in the order circle, square, triangle, star, ring, cross, hexagon,
    crescent."""
    # shares of the side, so that changing `image_size_px` scales the objects too
    object_size: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        12 / 128,
        60 / 128,
    )
    """Smallest and largest diameter of a shape, as shares of the image's side. Small shapes are
    more frequent."""
    seed: int = 0
    """Seed of the images; independent of the trial's seed."""
    resize: Resize | None = None
    """How images are resized. Unset: not at all."""

    @model_validator(mode="after")
    def _sizes_rise(self) -> "ShapesData":
        if not self.object_size[0] < self.object_size[1]:
            raise ValueError(f"object_size: needs smallest < largest, got {list(self.object_size)}")
        return self

    @model_validator(mode="after")
    def _split_leaves_images(self) -> "ShapesData":
        # For COCO data the number of images is known only once the files are opened, so
        # `kdr.data.splits` checks this rule there.
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
    """A data set in COCO format on disk. Relative paths start at the study file's folder."""

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
    """How images are resized; by default to the usual 800 x 1333 px."""
    aspect_ratio_grouping: bool = True
    """Put images of similar aspect ratio in one batch, which saves padding."""


DataConfig = Annotated[ShapesData | CocoData, Field(discriminator="dataset")]
