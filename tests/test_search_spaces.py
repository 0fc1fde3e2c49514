"""The studies of `search_spaces/`: their heads are valid, and a small copy of each recipe
trains.
"""

import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model

import kdr
from kdr.config.data import SHAPE_CLASSES, ShapesData
from kdr.config.detector import DetectorConfig
from kdr.config.study import Study, read_study
from kdr.config.trial import TrialConfig
from kdr.data.shapes import write_shapes
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import save_student
from kdr.plan.arm_checks import check_design
from kdr.plan.designs import arm_points
from kdr.plan.keys import make_trial
from kdr.run.attempt.logged_fit import has_weights, teacher_of
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.training.fit import fit
from kdr.training.shared_parts import SharedParts

FOLDER = Path(kdr.__file__).parents[1] / "search_spaces"
STUDIES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
RECIPES = [name for name in STUDIES if name.startswith("coco_")]
NUM_CLASSES = 3
NUM_IMAGES = 5
TWO_STEPS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "step_epochs": None,
    "eval_every_epochs": 1,
    "precision": "fp32",
}


def head_of(name: str) -> list[str]:
    """Returns the lines of a study's head comment, without the line for editors."""
    lines = STUDIES[name].read_text().splitlines()[1:]
    return [
        line.removeprefix("#").strip()
        for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]
    ]


def trials_of(study: Study) -> list[TrialConfig]:
    """Returns the trials of a study: each arm with the first seed, or a search's base trial."""
    points = [changes for _, changes in arm_points(study.ablation)] if study.ablation else [{}]
    configs = [study.trial_with(point) for point in points]
    return [config for config in configs if config.seed == configs[0].seed]


@pytest.mark.parametrize("name", STUDIES)
def test_a_head_has_a_question_a_command_a_cost_and_an_expectation(name: str) -> None:
    labels = [match[1] for line in head_of(name) if (match := re.match(r"(\w[\w ]*):\s", line))]
    expected = ["Question", "Command", "Cost", "Read against" if name in RECIPES else "Expected"]
    assert [label for label in labels if label in expected] == expected


@pytest.mark.parametrize("name", RECIPES)
def test_the_cost_of_a_recipe_is_an_estimate_with_its_arithmetic(name: str) -> None:
    text = " ".join(head_of(name)).partition("Cost:")[2].partition("Read against:")[0]
    for part in ("estimate", "GPU-hours", "TFLOP per image", "TFLOP/s"):
        assert part in text


def overrides_in(name: str, label: str) -> list[str]:
    """Returns the `--set` overrides in a part of a head."""
    text = " ".join(head_of(name)).partition(f"{label}:")[2]
    words = shlex.split(re.split(r"(?:Cost|Then): ", text)[0].replace("$PWD", "/here"))
    return [word for option, word in itertools.pairwise(words) if option == "--set"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yields the study file and the `--set` overrides of every command in the recipes' heads."""
    for name in RECIPES:
        overrides = overrides_in(name, "Command")
        starts = [
            index for index, override in enumerate(overrides) if override.startswith("study=")
        ]
        for begin, end in zip([0, *starts], [*starts, len(overrides)], strict=True):
            yield name, overrides[begin:end]


@pytest.mark.parametrize(("name", "overrides"), list(commands()))
def test_the_commands_of_a_head_are_valid(name: str, overrides: list[str]) -> None:
    study = read_study(STUDIES[name], overrides)
    check_design(study)
    assert trials_of(study)


def test_the_full_run_of_the_searchs_head_has_the_best_trial_and_its_twin(
    tmp_path: Path,
) -> None:
    search = read_study(STUDIES["coco_search"])
    trial = search.base.model_dump(mode="json")
    # as `kdr best --export` writes it
    exported = {
        "study": "coco-search-best",
        "trial": {**trial, "data": {**trial["data"], "search_split": 0}},
    }
    (tmp_path / "best.yaml").write_text(json.dumps(exported))
    study = read_study(tmp_path / "best.yaml", overrides_in("coco_search", "Then"))
    check_design(study)
    best, off = trials_of(study)
    assert best.training.epochs == 24
    assert best.distill.methods()
    assert off == best.with_changes(distill=off.distill)
    assert not off.distill.methods()


@pytest.mark.parametrize("name", RECIPES)
def test_every_distilled_trial_has_a_twin_without_distillation(name: str) -> None:
    study = read_study(STUDIES[name])
    if study.ablation is None:
        pytest.skip("a search: the twin is in the full run of its head")
    trials = trials_of(study)
    plain = [
        config.student.model_dump(exclude={"inherit"})
        for config in trials
        if not config.distill.methods()
    ]
    distilled = [config for config in trials if config.distill.methods()]
    assert bool(distilled) == (name != "coco_teachers")
    assert all(config.student.model_dump(exclude={"inherit"}) in plain for config in distilled)
    assert len({config.training for config in trials}) == 1 or name == "coco_teachers"


def test_the_recipes_train_the_same_teachers_as_the_teachers_recipe() -> None:
    def key(config: TrialConfig | None, study: Study) -> str:
        assert config is not None
        return make_trial(
            config, data_id="coco", weights_id=str, workers=study.resources.workers
        ).key

    recipes = [read_study(STUDIES[f"coco_{name}"]) for name in ("retinanet", "faster_rcnn", "fcos")]
    teachers = [
        read_study(STUDIES[name], overrides)
        for name, overrides in commands()
        if name == "coco_teachers"
    ]
    wanted = [key(study.base.teacher_trial(), study) for study in recipes]
    assert [key(study.base, study) for study in teachers] == wanted
    assert len(set(wanted)) == 3


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in COCO format, and a classifier's weights that keep features finite
    although their norms are frozen.
    """
    folder = tmp_path_factory.mktemp("small")
    shapes = ShapesData(
        dataset="shapes",
        image_size_px=64,
        num_train=NUM_IMAGES,
        num_val=2,
        num_classes=NUM_CLASSES,
    )
    write_shapes(shapes, folder / "coco")
    torch.manual_seed(0)
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(
        {key: value * 0.2 if key.endswith("bn2.weight") else value for key, value in state.items()},
        folder / "resnet18.pt",
    )
    return folder


def made_small(config: TrialConfig, files: Path) -> TrialConfig:
    """Returns the trial with two steps of two small images, resnet18, 32 channels and small
    weights.
    """
    content = config.model_dump(mode="json")
    for split in ("train", "val"):
        content["data"] |= {
            f"{split}_images": f"{files}/coco/{split}",
            f"{split}_annotations": f"{files}/coco/{split}.json",
        }
    content["data"] |= {
        "search_split": 1 if config.data.search_split else 0,
        "resize": {"short_side_px": [64] * num_sides(config), "long_side_px": 96},
    }
    for who in ("student", "teacher"):
        if content[who] is not None:
            content[who] |= {"backbone": "resnet18", "fpn_channels": 32}
            if content[who]["backbone_weights"] is not None:
                content[who]["backbone_weights"] = f"{files}/resnet18.pt"
            if content[who]["weights"] is not None:
                content[who]["weights"] = str(small_weights(content[who], files))
            if content[who].get("training"):
                content[who]["training"] |= TWO_STEPS
    content["training"] |= TWO_STEPS
    return TrialConfig.model_validate_json(json.dumps(content))


def small_weights(settings: dict[str, Any], files: Path) -> Path:
    """Returns the weights of a small detector of the same kind."""
    config = DetectorConfig(
        detector=settings["detector"],
        backbone="resnet18",
        fpn_channels=32,
        head_norm=settings["head_norm"],
    )
    path = files / f"{settings['detector']}-{settings['head_norm']}.pt"
    if not path.exists():
        save_student(
            LocalPath(path), build_detector(config, SHAPE_CLASSES[:NUM_CLASSES], seed=1), extra={}
        )
    return path


def num_sides(config: TrialConfig) -> int:
    assert config.data.resize is not None
    return len(config.data.resize.short_side_px or ())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_small_copy_of_every_trial_of_a_recipe_trains(
    name: str, small_files: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    study, storage = read_study(STUDIES[name], ["resources.workers=1"]), Storage.at(tmp_path)
    make, shared = trial_maker(study, storage), SharedParts(storage)
    for config in trials_of(study):
        trial = make(made_small(config, small_files))
        teacher = teacher_of(trial)
        if teacher is not None and not has_weights(teacher, storage):
            assert [metrics.step for metrics in fit(teacher, storage=storage, shared=shared)] == [2]
        [metrics] = fit(trial, storage=storage, shared=shared)
        assert metrics.step == 2
        assert metrics.evaluation is not None
        assert all(map(math.isfinite, metrics.weighted_losses.values()))
        distilled = [
            term
            for term, value in metrics.weighted_losses.items()
            if term.startswith("kdr.") and value > 0
        ]
        assert bool(distilled) == bool(config.distill.methods())
        assert metrics.extras["loaded.backbone"] == 1
        assert ("inherited.head" in metrics.extras) == config.student.inherit
