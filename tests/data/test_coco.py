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


def test_labels_are_contiguous_in_the_order_of_category_ids(awkward) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    assert index.categories == ("car", "train", "toothbrush")
    assert index.category_ids == (3, 7, 90)
    assert index.image_ids == [5, 11, 12, 13, 14, 15, 16, 17, 18]
    assert index.labels[1].tolist() == [2, 0, 0]
    assert index.labels[1].dtype == np.int64


def test_boxes_are_clipped_and_crowds_and_empty_boxes_are_no_targets(awkward) -> None:
    index = read_coco(awkward.images, awkward.annotations)
    assert index.boxes[1].dtype == np.float32
    assert index.boxes[1].tolist() == [[10, 5, 30, 35], [0, 0, 15, 15], [50, 30, 60, 40]]
    assert index.boxes[4].shape == (0, 4)
    assert index.sizes[5].tolist() == [60, 40]


def test_every_special_case_is_counted_in_one_line(awkward) -> None:
    line = check_images(read_coco(awkward.images, awkward.annotations), full=True).summary()
    assert (
        line
        == "instances.json: 9 images, 10 boxes, 3 categories; in the whole file: 1 crowd boxes "
        "kept for evaluation only, 2 boxes clipped to their image, 2 boxes of no area dropped, "
        "1 images without boxes, 2 greyscale files, 1 CMYK files, 1 palette files, 1 files "
        "with transparency, 1 files turned as their EXIF says"
    )


def test_exif_orientation_is_applied_only_where_it_gives_the_size_of_the_file(awkward) -> None:
    index = check_images(read_coco(awkward.images, awkward.annotations), full=False)
    assert [index.image_ids[i] for i in np.flatnonzero(index.orient)] == [15]


def test_ground_truth_keeps_what_pycocotools_reads_from_the_file_but_for_boxes_of_no_area(
    awkward, capsys
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


def test_detections_equal_to_the_ground_truth_reach_an_ap_of_one(awkward) -> None:
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


def test_a_subset_holds_its_images_and_only_their_ground_truth(awkward) -> None:
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
            "ids of the images must differ, got image 11 twice",
        ),
        (
            lambda c: c["annotations"].append(c["annotations"][2]),
            "ids of the annotations must differ, got annotation 102 twice",
        ),
        (
            lambda c: c["categories"].append({"id": 3, "name": "bus"}),
            "ids of the categories must differ, got category 3 twice",
        ),
        (
            lambda c: c["categories"].append({"id": 4, "name": "car"}),
            "category names must differ, got 'car' 2 times",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            "annotation 100: image_id must be one of the images .* got 99",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=1),
            "annotation 100: category_id must be one of the categories .* got 1",
        ),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotation 100 needs 'bbox' \(list\), got none",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation 100: bbox needs four finite numbers .* \[1, 2, 3\]",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]),
            "annotation 100: bbox needs four finite numbers",
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
        (lambda c: c["images"][0].update(width=0), "image 11 needs a size above 0, got 0 x 40"),
        (
            lambda c: c.update(images=[], annotations=[]),
            "needs at least one image and one category",
        ),
        (lambda c: c.pop("categories"), "needs a list of objects under 'categories'"),
    ],
)
def test_a_fault_of_the_annotation_file_is_named_with_file_and_id(
    awkward, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    awkward.rewrite(change)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(awkward.images, awkward.annotations)
    assert str(caught.value).startswith(str(awkward.annotations))


def test_many_faults_are_told_at_once_and_the_rest_is_counted(awkward) -> None:
    wrong = [
        {"id": 500 + n, "image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]} for n in range(25)
    ]
    awkward.rewrite(lambda c: c["annotations"].extend(copy.deepcopy(wrong)))
    with pytest.raises(DataError, match="and 5 more problems") as caught:
        read_coco(awkward.images, awkward.annotations)
    assert len(str(caught.value).splitlines()) == 21


def test_an_absent_area_is_the_boxes_area(awkward) -> None:
    awkward.rewrite(lambda c: [a.pop("area") for a in c["annotations"]])
    truth = coco_ground_truth(read_coco(awkward.images, awkward.annotations))
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in truth["annotations"])


def test_a_file_without_any_annotation_is_a_set_of_images_without_boxes(awkward) -> None:
    awkward.rewrite(lambda c: c.update(annotations=[]))
    index = read_coco(awkward.images, awkward.annotations)
    assert index.counts["empty"] == 9
    assert [boxes.shape for boxes in index.boxes] == [(0, 4)] * 9
    assert coco_ground_truth(index)["annotations"] == []


def test_files_that_are_missing_or_cut_off_are_named(awkward) -> None:
    with pytest.raises(DataError, match="nowhere: needs the folder of the images"):
        read_coco(awkward.images / "nowhere", awkward.annotations)
    with pytest.raises(
        DataError,
        match=r"nothing\.json: needs an annotation file .* \(No such file or directory\)",
    ):
        read_coco(awkward.images, awkward.images / "nothing.json")
    awkward.annotations.write_text(awkward.annotations.read_text()[:100])
    with pytest.raises(DataError, match=r"instances\.json: must be JSON"):
        read_coco(awkward.images, awkward.annotations)


def test_missing_damaged_and_wrongly_sized_images_are_all_named_with_their_ids(awkward) -> None:
    (awkward.images / "plain.jpg").unlink()
    (awkward.images / "grey.jpg").write_bytes(b"no image")
    Image.new("RGB", (30, 40)).save(awkward.images / "bitmap.bmp")
    with pytest.raises(
        DataError, match=r"plain\.jpg: image 11 of instances\.json must exist"
    ) as caught:
        check_images(read_coco(awkward.images, awkward.annotations), full=False)
    text = str(caught.value)
    assert "grey.jpg: image 5 of instances.json must be a readable image" in text
    assert (
        "bitmap.bmp: image 18 of instances.json must be 60 x 40 pixels as its annotations say, got "
        "30 x 40" in text
    )


def test_only_the_full_check_finds_damage_behind_a_sound_header(awkward) -> None:
    path = awkward.images / "plain.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    index = read_coco(awkward.images, awkward.annotations)
    check_images(index, full=False)
    with pytest.raises(
        DataError,
        match=(
            r"plain\.jpg: image 11 of instances\.json must be a readable image, got OSError:"
            r" .*truncated"
        ),
    ):
        check_images(index, full=True)


def _loaded(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
