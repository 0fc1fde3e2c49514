"""The page docs/own-data.md: its example is a valid study of a COCO data set."""

import re
from pathlib import Path

import yaml

import kdr
from kdr.config.study import study_from
from kdr.data.splits import open_splits
from kdr.storage.layout import Storage
from tests.data.conftest import CocoFolder

PAGE = Path(kdr.__file__).parents[1] / "docs" / "own-data.md"


def test_the_example_is_a_study_that_opens_a_coco_data_set(
    awkward: CocoFolder, tmp_path: Path
) -> None:
    example, *_ = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_bytes(awkward.annotations.read_bytes())
        (awkward.images / split).symlink_to(awkward.images)
    study = study_from(yaml.safe_load(example), folder=tmp_path)
    splits = open_splits(study.base.data, Storage.at(tmp_path / "runs"))
    assert (len(splits.train), len(splits.evaluation)) == (8, 1)
    assert splits.categories == ("car", "train", "toothbrush")
