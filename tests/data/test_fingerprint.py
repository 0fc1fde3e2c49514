import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdr.config.data import Augment, CocoData, Resize, ShapesData
from kdr.data.fingerprint import data_fingerprint
from kdr.errors import DataError
from kdr.storage.layout import Storage
from tests.data.conftest import CocoFolder


def _coco(folder: Path, **settings: object) -> CocoData:
    images, annotations = str(folder / "images"), str(folder / "instances.json")
    return CocoData(
        dataset="coco",
        train_images=images,
        train_annotations=annotations,
        val_images=images,
        val_annotations=annotations,
        **settings,
    )


def test_shapes_need_no_file_and_only_settings_of_the_images_count(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "nowhere")
    base = ShapesData(dataset="shapes")
    fingerprint = data_fingerprint(base, storage)
    same = {
        "search_split": 0.2,
        "augment": Augment(flip=0),
        "resize": Resize(square_px=64),
        "aspect_ratio_grouping": True,
    }
    assert data_fingerprint(base.with_changes(**same), storage) == fingerprint
    others = {"image_size_px": 64, "num_train": 511, "num_val": 64, "num_classes": 5, "seed": 1}
    changed = {
        data_fingerprint(base.with_changes(**{name: value}), storage)
        for name, value in others.items()
    }
    assert len(changed | {fingerprint}) == 6
    assert not (tmp_path / "nowhere").exists()


def test_a_copy_elsewhere_has_the_same_fingerprint(awkward: CocoFolder, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "storage")
    fingerprint = data_fingerprint(_coco(tmp_path), storage)
    assert len(fingerprint) == 20
    shutil.copytree(awkward.images, tmp_path / "copy" / "images")
    shutil.copy(awkward.annotations, tmp_path / "copy")
    copied = _coco(tmp_path / "copy", search_split=0.3, resize=Resize(square_px=64))
    assert data_fingerprint(copied, storage) == fingerprint


def test_changed_annotations_or_images_change_it_despite_the_cache(
    awkward: CocoFolder, tmp_path: Path
) -> None:
    storage = Storage.at(tmp_path / "storage")
    seen = [data_fingerprint(_coco(tmp_path), storage)]
    awkward.rewrite(lambda content: content["annotations"].pop())
    seen.append(data_fingerprint(_coco(tmp_path), storage))
    (awkward.images / "new").write_bytes((awkward.images / "plain.jpg").read_bytes() + b"more")
    (awkward.images / "new").replace(awkward.images / "plain.jpg")
    seen.append(data_fingerprint(_coco(tmp_path), storage))
    assert len(set(seen)) == 3


def test_a_file_that_is_not_listed_does_not_matter(awkward: CocoFolder, tmp_path: Path) -> None:
    before = data_fingerprint(_coco(tmp_path), Storage.at(tmp_path / "storage"))
    (awkward.images / "thumbs.db").write_text("left by a viewer")
    assert data_fingerprint(_coco(tmp_path), Storage.at(tmp_path / "storage")) == before


def test_the_second_call_does_not_read_the_annotations(awkward: CocoFolder, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "storage")
    fingerprint = data_fingerprint(_coco(tmp_path), storage)
    # same time and size, but damaged: only a call that reads the file notices
    stat, size = awkward.annotations.stat(), len(awkward.annotations.read_bytes())
    awkward.annotations.write_bytes(b"x" * size)
    os.utime(awkward.annotations, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert data_fingerprint(_coco(tmp_path), storage) == fingerprint
    with pytest.raises(DataError, match="not valid JSON"):
        data_fingerprint(_coco(tmp_path), Storage.at(tmp_path / "other"))


def test_a_read_only_storage_or_a_damaged_cache_only_costs_time(
    awkward: CocoFolder, tmp_path: Path
) -> None:
    storage = Storage.at(tmp_path / "storage")
    fingerprint = data_fingerprint(_coco(tmp_path), storage)
    for cache in (storage.data / "fingerprints").iterdir():
        cache.write_text('{"fingerprint": ')
    assert data_fingerprint(_coco(tmp_path), storage) == fingerprint
    (tmp_path / "file").write_text("in the way")
    assert (
        data_fingerprint(_coco(tmp_path), Storage.at(tmp_path / "file" / "storage")) == fingerprint
    )


def test_missing_files_are_reported_by_name(awkward: CocoFolder, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "storage")
    (awkward.images / "plain.jpg").unlink()
    shutil.rmtree(awkward.images / "nested")
    with pytest.raises(
        DataError, match=r"plain\.jpg: no such file, but .*instances\.json lists it"
    ) as caught:
        data_fingerprint(_coco(tmp_path), storage)
    assert "transparent.png: no such file" in str(caught.value)
    awkward.annotations.unlink()
    with pytest.raises(DataError, match=r"instances\.json: cannot read the annotation file"):
        data_fingerprint(_coco(tmp_path), storage)


def test_importing_the_module_loads_no_heavy_package() -> None:
    code = (
        "import sys, kdr.data.fingerprint; print([name for name in ('torch', 'numpy', 'PIL', "
        "'pycocotools', 'ray', 'pydantic') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
