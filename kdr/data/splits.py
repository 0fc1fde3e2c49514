"""Training and evaluation images of a trial."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdr.config.data import CocoData, ShapesData
from kdr.data.coco import CocoIndex, check_images, read_coco
from kdr.data.fingerprint import data_fingerprint
from kdr.data.shapes import write_shapes
from kdr.errors import DataError
from kdr.randomness import address
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class Splits:
    """The images of a trial.

    Args:
        train: the training images without the search split.
        evaluation: the search split if there is one, otherwise the validation set.
        categories: K names, in the order of the labels.
    """

    train: CocoIndex
    evaluation: CocoIndex
    categories: tuple[str, ...]


def open_splits(
    data: ShapesData | CocoData, storage: Storage, *, check: Literal["headers", "full"] = "headers"
) -> Splits:
    """Reads and checks a data set. Generates shapes first if the storage does not have them.

    Args:
        data: the settings.
        storage: where generated shapes are stored.
        check: `headers` reads the header of each image file, `full` decodes it.

    Raises:
        DataError: from `read_coco` and `check_images`; if training and validation set differ in
            their categories; if the search split leaves no training images.
        StorageError: if shapes cannot be written.
    """
    train, val = (
        check_images(read_coco(*pair), full=check == "full") for pair in _files(data, storage)
    )
    if train.categories != val.categories:
        only = sorted(set(train.categories) ^ set(val.categories))
        # labels are positions in the list of categories, so the order must be equal too
        difference = f"only one of them has {', '.join(only)}" if only else "the order differs"
        raise DataError(
            f"{val.annotations}: its categories differ from those of {train.annotations}: "
            f"{difference}. Both files need the same names in the same order of ids"
        )
    kept, held_out = search_split(train, data.search_split)
    return Splits(kept, held_out if len(held_out) else val, train.categories)


def open_validation(data: ShapesData | CocoData, storage: Storage) -> CocoIndex:
    """Reads and checks the validation set alone, which trials of a search do not use.

    Raises the same errors as `open_splits`.
    """
    _, files = _files(data, storage)
    return check_images(read_coco(*files), full=False)


def search_split(index: CocoIndex, amount: float) -> tuple[CocoIndex, CocoIndex]:
    """Splits the training images into those to train on and those held out for a search.

    The split is the same in all trials, independent of their seeds.

    Args:
        index: the training images.
        amount: a share if below 1, else a number of images; 0 holds out none.

    Raises:
        DataError: if no training images are left.
    """
    num_held_out = int(amount) if amount >= 1 else max(round(amount * len(index)), int(amount > 0))
    if num_held_out >= len(index):
        raise DataError(
            f"data.search_split: must leave training images, got {amount:g} of the {len(index)} "
            f"images of {index.annotations}. Hold out fewer"
        )
    # Every image has its own address, so a larger split contains a smaller one.
    drawn = sorted(
        range(len(index)),
        key=lambda position: address(0, "search_split", index.image_ids[position]),
    )
    held_out = set(drawn[:num_held_out])
    return index.subset(i for i in range(len(index)) if i not in held_out), index.subset(
        sorted(held_out)
    )


def _files(
    data: ShapesData | CocoData, storage: Storage
) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """Returns (image folder, annotation file) of training and validation set; generates shapes."""
    if data.dataset == "coco":
        return (Path(data.train_images), Path(data.train_annotations)), (
            Path(data.val_images),
            Path(data.val_annotations),
        )
    folder = storage.data / f"shapes-{data_fingerprint(data, storage)}"
    if not folder.is_dir():
        write_shapes(data, folder)
    return (folder / "train", folder / "train.json"), (folder / "val", folder / "val.json")
