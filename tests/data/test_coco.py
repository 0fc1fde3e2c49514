import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdr.data.coco import check_images, coco_ground_truth, read_coco
from kdr.errors import DataError
from tests.data.conftest import CocoFolder, Content


def test_labels_are_contiguous_and_ordered_by_category_id(awkward: CocoFolder) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    assert index.categories == ("car", "train", "toothbrush")
    assert index.category_ids == (3, 7, 90)
    assert index.image_ids == [5, 11, 12, 13, 14, 15, 16, 17, 18]
    assert index.labels[1].tolist() == [2, 0, 0]
    assert index.labels[1].dtype == np.int64


def test_boxes_are_clipped_and_crowds_and_empty_boxes_are_not_targets(awkward: CocoFolder) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    assert index.boxes[1].dtype == np.float32
    assert index.boxes[1].tolist() == [[10, 5, 30, 35], [0, 0, 15, 15], [50, 30, 60, 40]]
    assert index.boxes[4].shape == (0, 4)
    assert index.sizes[5].tolist() == [60, 40]


def test_every_special_case_is_counted_in_one_line(awkward: CocoFolder) -> None:
    line = check_images(read_coco(awkward.images, awkward.annotations), full=True).summary()
    assert (
        line
        == "instances.json: 9 images, 10 boxes, 3 categories; in the whole file: crowd boxes kept "
        "for evaluation only (1), boxes clipped to their image (2), boxes without area dropped "
        "(2), images without boxes (1), greyscale files (2), CMYK files (1), palette files (1), "
        "files with transparency (1), files rotated by their EXIF orientation (1)"
    )


def test_exif_orientation_is_applied_only_if_it_gives_the_annotated_size(
    awkward: CocoFolder,
) -> None:
    index = check_images(read_coco(awkward.images, awkward.annotations), full=False)
    assert [index.image_ids[i] for i in np.flatnonzero(index.orient)] == [15]


def test_ground_truth_is_what_pycocotools_reads_except_boxes_without_area(
    awkward: CocoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    assert capsys.readouterr().out == ""
    ours = _loaded(coco_ground_truth(index))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(awkward.annotations))
    assert sorted(ours.getImgIds()) == sorted(reference.getImgIds())
    assert ours.getCatIds() == sorted(reference.getCatIds())
    fields = ("image_id", "category_id", "bbox", "area", "iscrowd")
    expected = [
        [a[field] for field in fields] for a in reference.anns.values() if a["id"] not in (104, 105)
    ]
    assert sorted([a[field] for field in fields] for a in ours.anns.values()) == sorted(expected)
    assert min(ours.getAnnIds()) == 1


def test_detections_equal_to_the_ground_truth_reach_an_ap_of_one(awkward: CocoFolder) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    truth = _loaded(coco_ground_truth(index))
    perfect = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.9,
        }
        for a in truth.anns.values()
        if not a["iscrowd"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(perfect), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_a_subset_holds_its_images_and_only_their_ground_truth(awkward: CocoFolder) -> None:
    index = check_images(read_coco(awkward.images, awkward.annotations), full=False).subset([5, 1])
    assert index.image_ids == [15, 11]
    assert index.paths == [awkward.images / "turned.jpg", awkward.images / "plain.jpg"]
    assert index.orient.tolist() == [True, False]
    truth = coco_ground_truth(index)
    assert [image["id"] for image in truth["images"]] == [15, 11]
    assert {a["image_id"] for a in truth["annotations"]} == {15, 11}
    assert len(index.subset([])) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["images"].append(c["images"][0]),
            "duplicate image id 11",
        ),
        (
            lambda c: c["annotations"].append(c["annotations"][2]),
            "duplicate annotation id 102",
        ),
        (
            lambda c: c["categories"].append({"id": 3, "name": "bus"}),
            "duplicate category id 3",
        ),
        (
            lambda c: c["categories"].append({"id": 4, "name": "car"}),
            "category name 'car' is used 2 times; names must be unique",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            "annotation 100: no entry of 'images' has the image_id 99",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=1),
            "annotation 100: no entry of 'categories' has the category_id 1",
        ),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotation 100 needs 'bbox' \(list\), got none",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation 100: bbox must be four finite numbers .* \[1, 2, 3\]",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]),
            "annotation 100: bbox must be four finite numbers",
        ),
        (
            lambda c: c["annotations"][0].update(area="big"),
            "annotation 100: area must be a finite number, got 'big'",
        ),
        (
            lambda c: c["images"][0].pop("file_name"),
            r"image 11 needs 'file_name' \(str\), got none",
        ),
        (lambda c: c["images"][0].update(id="11"), r"image 11 needs 'id' \(int\), got id='11'"),
        (
            lambda c: c["images"][0].update(width=0),
            "image 11 needs width and height of at least 1, got 0 x 40",
        ),
        (
            lambda c: c.update(images=[], annotations=[]),
            "needs at least one image and one category",
        ),
        (lambda c: c.pop("categories"), "no list of objects under 'categories'"),
    ],
)
def test_an_error_in_the_annotation_file_is_reported_with_file_and_id(
    awkward: CocoFolder, change: Callable[[Content], object], message: str
) -> None:
    awkward.rewrite(change)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(awkward.images, awkward.annotations)
    assert str(caught.value).startswith(str(awkward.annotations))


def test_twenty_errors_are_reported_at_once_and_the_rest_is_counted(awkward: CocoFolder) -> None:
    wrong = [
        {"id": 500 + n, "image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]} for n in range(25)
    ]
    awkward.rewrite(lambda c: c["annotations"].extend(copy.deepcopy(wrong)))
    with pytest.raises(DataError, match="and 5 more problems") as caught:
        read_coco(awkward.images, awkward.annotations)
    assert len(str(caught.value).splitlines()) == 21


def test_a_missing_area_is_the_area_of_the_box(awkward: CocoFolder) -> None:
    awkward.rewrite(lambda c: [a.pop("area") for a in c["annotations"]])
    truth = coco_ground_truth(read_coco(awkward.images, awkward.annotations))
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in truth["annotations"])


def test_a_file_without_annotations_is_a_set_of_images_without_boxes(awkward: CocoFolder) -> None:
    awkward.rewrite(lambda c: c.update(annotations=[]))
    index = read_coco(awkward.images, awkward.annotations)
    assert index.counts["empty"] == 9
    assert [boxes.shape for boxes in index.boxes] == [(0, 4)] * 9
    assert coco_ground_truth(index)["annotations"] == []


def test_missing_and_truncated_files_are_reported_by_name(awkward: CocoFolder) -> None:
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        read_coco(awkward.images / "nowhere", awkward.annotations)
    with pytest.raises(
        DataError,
        match=r"nothing\.json: cannot read the annotation file \(No such file or directory\)",
    ):
        read_coco(awkward.images, awkward.images / "nothing.json")
    awkward.annotations.write_text(awkward.annotations.read_text()[:100])
    with pytest.raises(DataError, match=r"instances\.json: not valid JSON"):
        read_coco(awkward.images, awkward.annotations)


def test_missing_damaged_and_wrongly_sized_images_are_all_reported_with_their_ids(
    awkward: CocoFolder,
) -> None:
    (awkward.images / "plain.jpg").unlink()
    (awkward.images / "grey.jpg").write_bytes(b"no image")
    Image.new("RGB", (30, 40)).save(awkward.images / "bitmap.bmp")
    with pytest.raises(
        DataError, match=r"plain\.jpg: image 11 of instances\.json: no such file"
    ) as caught:
        check_images(read_coco(awkward.images, awkward.annotations), full=False)
    text = str(caught.value)
    assert "grey.jpg: image 5 of instances.json: not a readable image" in text
    assert (
        "bitmap.bmp: image 18 of instances.json: the file has 30 x 40 pixels, its annotations say "
        "60 x 40" in text
    )


def test_only_the_full_check_finds_damage_behind_an_intact_header(awkward: CocoFolder) -> None:
    path = awkward.images / "plain.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    index = read_coco(awkward.images, awkward.annotations)
    check_images(index, full=False)
    with pytest.raises(
        DataError,
        match=(
            r"plain\.jpg: image 11 of instances\.json: not a readable image "
            r"\(OSError: .*truncated"
        ),
    ):
        check_images(index, full=True)


def _loaded(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
