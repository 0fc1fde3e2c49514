"""The images that a trial trains on and those that it is evaluated on."""

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
        train: what it trains on, without the search split.
        evaluation: what it is evaluated on: the search split if there is one, else the validation
            set.
        categories: K names; label k is the k-th.
    """

    train: CocoIndex
    evaluation: CocoIndex
    categories: tuple[str, ...]


def open_splits(
    data: ShapesData | CocoData, storage: Storage, *, check: Literal["headers", "full"] = "headers"
) -> Splits:
    """Reads and checks a data set; generated shapes are drawn first if they are not yet in the
    storage.

    Args:
        data: the settings.
        storage: where generated shapes are kept.
        check: read the `headers` of all images, or decode them in `full`.

    Raises:
        DataError: for anything wrong with the files, as `read_coco` and `check_images` say; if
            training and validation set differ in their categories; if the search split leaves no
            training images.
        StorageError: if shapes cannot be written.
    """
    train, val = (
        check_images(read_coco(*pair), full=check == "full") for pair in _files(data, storage)
    )
    if train.categories != val.categories:
        only = sorted(set(train.categories) ^ set(val.categories))
        raise DataError(
            f"{val.annotations}: must have the categories of {train.annotations}, in the same "
            "order of ids, got others"
            + (f": only in one of the files are {', '.join(only)}" if only else "")
        )
    kept, held_out = search_split(train, data.search_split)
    return Splits(kept, held_out if len(held_out) else val, train.categories)


def open_validation(data: ShapesData | CocoData, storage: Storage) -> CocoIndex:
    """Reads and checks the validation set alone, which a search does not evaluate on. Raises what
    `open_splits` does.
    """
    _, files = _files(data, storage)
    return check_images(read_coco(*files), full=False)


def search_split(index: CocoIndex, amount: float) -> tuple[CocoIndex, CocoIndex]:
    """The images that stay in training, and those held out: the same in every trial, whatever its
    seed.

    Args:
        index: the training images.
        amount: a share below 1, or a number of images; 0 holds out none.

    Raises:
        DataError: if no image would be left to train on.
    """
    num_held_out = int(amount) if amount >= 1 else max(round(amount * len(index)), int(amount > 0))
    if num_held_out >= len(index):
        raise DataError(
            f"data.search_split: must leave training images, got {amount:g} of the {len(index)} "
            f"images of {index.annotations}"
        )
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
    """Image folder and annotation file of the training and of the validation set; shapes that are
    missing are drawn.
    """
    if data.dataset == "coco":
        return (Path(data.train_images), Path(data.train_annotations)), (
            Path(data.val_images),
            Path(data.val_annotations),
        )
    folder = storage.data / f"shapes-{data_fingerprint(data, storage)}"
    if not folder.is_dir():
        write_shapes(data, folder)
    return (folder / "train", folder / "train.json"), (folder / "val", folder / "val.json")
