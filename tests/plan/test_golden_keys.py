"""The keys of shipped studies never change by accident: a changed key trains a finished trial
again.

After an intended change of keys (a raised version in `kdr/config/versions.py`, a study file that
asks another question), run `python tests/plan/test_golden_keys.py` to write them again.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdr
from kdr.config.study import Study, read_study
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError
from kdr.plan.designs import arm_points
from kdr.plan.keys import make_trial
from kdr.plan.points import corners, space_of

FOLDER = Path(kdr.__file__).parents[1] / "search_spaces"
GOLDEN = Path(__file__).with_name("golden_keys.json")
NUM_CORNERS = 20
STUDIES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def keys_of(study: Study) -> list[str]:
    """Returns the keys of a study's trials and teachers, with names in place of data and
    weights.
    """
    configs = list(_configs(study))
    teachers = [teacher for config in configs if (teacher := config.teacher_trial()) is not None]
    return list(dict.fromkeys(_key(config, study) for config in (*configs, *teachers)))


def _key(config: TrialConfig, study: Study) -> str:
    workers = study.resources.workers
    return make_trial(config, data_id="data", weights_id=_file_name, workers=workers).key


def _file_name(weights: str) -> str:
    return Path(weights).name


def _configs(study: Study) -> Iterator[TrialConfig]:
    """Yields the study's base trial, and its arms or some corners of its search space."""
    points = [point for _, point in arm_points(study.ablation)] if study.ablation else []
    if study.search is not None:
        points += itertools.islice(corners(space_of(study)), NUM_CORNERS)
    yield study.base
    for point in points:
        with contextlib.suppress(ConfigError):  # a corner that is not a valid trial
            yield study.trial_with(point)


@pytest.mark.parametrize("name", STUDIES)
def test_the_keys_of_a_shipped_study_are_unchanged(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert keys_of(read_study(STUDIES[name])) == golden[name]


if __name__ == "__main__":
    found = {name: keys_of(read_study(path)) for name, path in STUDIES.items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
