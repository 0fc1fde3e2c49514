import json
from pathlib import Path

import pytest

from kdr.config.data import CocoData, ShapesData
from kdr.data.coco import coco_ground_truth
from kdr.data.splits import open_splits, search_split
from kdr.errors import DataError
from kdr.storage.layout import Storage
from tests.data.conftest import CocoFolder


def _shapes(**settings: object) -> ShapesData:
    return ShapesData(dataset="shapes", image_size_px=32, num_train=20, num_val=5, **settings)


def _coco(awkward: CocoFolder, **settings: object) -> CocoData:
    images, annotations = str(awkward.images), str(awkward.annotations)
    files = {
        "train_images": images,
        "train_annotations": annotations,
        "val_images": images,
        "val_annotations": annotations,
    }
    return CocoData(dataset="coco", **(files | settings))


def test_shapes_are_generated_once_and_then_read(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    splits = open_splits(_shapes(), storage)
    assert (len(splits.train), len(splits.evaluation)) == (20, 5)
    assert splits.categories == ("circle", "square", "triangle", "star", "ring", "cross")
    (folder,) = storage.data.iterdir()
    drawn = folder.stat().st_mtime_ns, (folder / "train.json").stat().st_mtime_ns
    open_splits(_shapes(), storage)
    assert drawn == (folder.stat().st_mtime_ns, (folder / "train.json").stat().st_mtime_ns)


@pytest.mark.parametrize(("amount", "held_out"), [(0.25, 5), (0.01, 1), (3.0, 3), (19.0, 19)])
def test_a_search_split_replaces_the_validation_set(
    tmp_path: Path, amount: float, held_out: int
) -> None:
    splits = open_splits(_shapes(search_split=amount), Storage.at(tmp_path))
    assert len(splits.evaluation) == held_out
    assert sorted(splits.train.image_ids + splits.evaluation.image_ids) == list(range(1, 21))
    assert splits.evaluation.annotations.name == "train.json"
    assert {a["image_id"] for a in coco_ground_truth(splits.evaluation)["annotations"]} == set(
        splits.evaluation.image_ids
    )


def test_a_larger_search_split_contains_the_smaller_one(tmp_path: Path) -> None:
    train = open_splits(_shapes(), Storage.at(tmp_path)).train
    small, large = (set(search_split(train, amount)[1].image_ids) for amount in (4, 0.5))
    assert small < large
    assert small != {1, 2, 3, 4}


def test_a_coco_data_set_opens_with_orientation_and_counts(
    awkward: CocoFolder, tmp_path: Path
) -> None:
    splits = open_splits(_coco(awkward), Storage.at(tmp_path / "storage"), check="full")
    assert splits.train.orient.sum() == 1
    assert "CMYK files (1)" in splits.evaluation.summary()


def test_a_search_split_that_leaves_nothing_is_refused(awkward: CocoFolder, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.search_split: must leave training images, got 9 of the 9 images"
    ):
        open_splits(_coco(awkward, search_split=9), Storage.at(tmp_path / "storage"))


def test_categories_of_training_and_validation_must_be_equal(
    awkward: CocoFolder, tmp_path: Path
) -> None:
    content = json.loads(awkward.annotations.read_text())
    content["categories"][0]["name"] = "brush"
    other = tmp_path / "val.json"
    other.write_text(json.dumps(content))
    with pytest.raises(
        DataError,
        match=r"val\.json: its categories differ from .*instances\.json: .* brush, toothbrush",
    ):
        open_splits(_coco(awkward, val_annotations=str(other)), Storage.at(tmp_path / "storage"))


def test_only_the_full_check_decodes(awkward: CocoFolder, tmp_path: Path) -> None:
    path = awkward.images / "plain.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    open_splits(_coco(awkward), Storage.at(tmp_path / "storage"))
    with pytest.raises(DataError, match=r"plain\.jpg: image 11"):
        open_splits(_coco(awkward), Storage.at(tmp_path / "storage"), check="full")
