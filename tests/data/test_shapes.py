import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdr.config.data import SHAPE_CLASSES, ShapesData
from kdr.data.coco import check_images, read_coco
from kdr.data.shapes import write_shapes
from kdr.errors import StorageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "all"
    write_shapes(ShapesData(dataset="shapes", num_train=150, num_val=3, num_classes=8), folder)
    return folder


def test_the_files_are_a_valid_coco_data_set(folder: Path) -> None:
    index = check_images(read_coco(folder / "train", folder / "train.json"), full=True)
    assert index.categories == SHAPE_CLASSES
    assert len(index) == 150
    assert not any(index.counts.values())  # no box to clip or drop, no image without boxes
    assert {int(label) for labels in index.labels for label in labels} == set(range(8))
    assert {len(boxes) for boxes in index.boxes} == {1, 2, 3, 4, 5, 6}


def test_boxes_contain_the_visible_pixels_and_span_the_range_of_sizes(folder: Path) -> None:
    annotations = json.loads((folder / "train.json").read_text())["annotations"]
    width, height, area = np.array([[a["bbox"][2], a["bbox"][3], a["area"]] for a in annotations]).T
    assert (area <= width * height).all()
    assert (area >= 10).all()
    longest = np.maximum(width, height)
    assert np.quantile(longest, 0.02) < 14
    assert 48 < longest.max() <= 72


def test_a_shape_contrasts_with_its_surroundings(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    contrasts = []
    for image in content["images"][:60]:
        pixels = np.asarray(Image.open(folder / "train" / image["file_name"]).copy(), dtype=float)
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            if (
                a["image_id"] == image["id"]
                and a["category_id"] in (1, 2)
                and a["area"] > 0.6 * w * h
            ):
                middle = pixels[
                    y + h // 3 : y + 2 * h // 3 + 1, x + w // 3 : x + 2 * w // 3 + 1
                ].mean((0, 1))
                around = pixels[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
                edge = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]]).mean(0)
                contrasts.append(np.linalg.norm(middle - edge))
    assert len(contrasts) > 20
    assert np.median(contrasts) > 40


def test_an_image_depends_only_on_seed_split_and_number(folder: Path, tmp_path: Path) -> None:
    write_shapes(
        ShapesData(dataset="shapes", num_train=4, num_val=2, num_classes=8), tmp_path / "short"
    )
    write_shapes(
        ShapesData(dataset="shapes", num_train=4, num_val=1, num_classes=8, seed=1),
        tmp_path / "other",
    )
    for name in ("train/000001.jpg", "train/000004.jpg", "val/000002.jpg"):
        assert (tmp_path / "short" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other/train/000001.jpg").read_bytes() != (
        folder / "train/000001.jpg"
    ).read_bytes()
    assert (folder / "val/000001.jpg").read_bytes() != (folder / "train/000001.jpg").read_bytes()
    annotations = [
        json.loads((where / "train.json").read_text())["annotations"]
        for where in (tmp_path / "short", folder)
    ]
    assert annotations[0] == [a for a in annotations[1] if a["image_id"] <= 4]


@pytest.mark.parametrize("side", [32, 200])
def test_other_sizes_and_few_classes_work(tmp_path: Path, side: int) -> None:
    write_shapes(
        ShapesData(dataset="shapes", num_train=20, num_val=1, num_classes=1, image_size_px=side),
        tmp_path / "made",
    )
    index = check_images(
        read_coco(tmp_path / "made/train", tmp_path / "made/train.json"), full=True
    )
    assert index.sizes.tolist() == [[side, side]] * 20
    assert index.categories == ("circle",)


def test_a_killed_generator_leaves_no_folder_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    code = (
        "from pathlib import Path; from kdr.config.data import ShapesData; from kdr.data.shapes "
        "import write_shapes; write_shapes(ShapesData(dataset='shapes', num_train=100000), "
        f"Path({str(tmp_path / 'made')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".made-*/made/train/000003.jpg")):
        assert process.poll() is None, "the generator ended too early"
        assert time.monotonic() < deadline, "no image was drawn"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "made").exists()
    write_shapes(ShapesData(dataset="shapes", num_train=2, num_val=1), tmp_path / "made")
    assert len(list((tmp_path / "made/train").iterdir())) == 2


def test_concurrent_writers_of_one_folder_all_succeed(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def write() -> None:
        try:
            write_shapes(ShapesData(dataset="shapes", num_train=6, num_val=1), tmp_path / "made")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((tmp_path / "made/train").iterdir())) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_cannot_be_written_is_reported_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/made: cannot write the generated shapes"):
        write_shapes(
            ShapesData(dataset="shapes", num_train=1, num_val=1), tmp_path / "file" / "made"
        )
