"""The findings that follow from a pre-flight's measurements, and how these are stored."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kdr.config.trial import Trial, TrialConfig
from kdr.storage.layout import Storage
from kdr.training import findings
from kdr.training.findings import Finding, Preflight, findings_of, load_preflight, save_preflight

SOUND = Preflight(
    losses={"classification": 1.0, "kdr.foreground": 2.0},
    gradient_norms={"detection": 0.5, "kdr": 5.0, "total": 5.1},
    loaded=("student: loaded 100% of the backbone",),
    levels=("P3 (12 x 12, 64 channels) from P3 (stride 8, 64 channels)",),
    teacher_ap=0.389,
    num_measured=5000,
    num_val=5000,
)


def config_with(**teacher: Any) -> TrialConfig:
    teacher = {"backbone": "resnet18", "weights": "teacher.pt", **teacher}
    return TrialConfig.model_validate(
        {"data": {"dataset": "shapes"}, "teacher": teacher, "distill": {"kdr": {}}}
    )


def found(name: str, measured: Preflight = SOUND, **teacher: Any) -> Finding:
    return next(
        finding for finding in findings_of(measured, config_with(**teacher)) if finding.name == name
    )


def test_every_finding_of_a_sound_trial_is_ok() -> None:
    states = {
        finding.name: finding.state for finding in findings_of(SOUND, config_with(stated_ap=0.389))
    }
    assert states == dict.fromkeys(
        ["teacher's AP", "loaded", "features", "losses", "gradients", "teacher frozen"], "ok"
    )


@pytest.mark.parametrize(
    ("ap", "num_measured", "teacher", "state"),
    [
        (0.389, 5000, {"stated_ap": 0.389}, "ok"),
        (0.380, 5000, {"stated_ap": 0.389}, "ok"),
        (0.378, 5000, {"stated_ap": 0.389}, "failed"),
        (0.378, 5000, {"stated_ap": 0.389, "stated_ap_margin": 0.02}, "ok"),
        (0.402, 5000, {"stated_ap": 0.389}, "failed"),
        (0.330, 400, {"stated_ap": 0.389}, "ok"),  # 0.01 + 1 / 20 = 0.06
        (0.328, 400, {"stated_ap": 0.389}, "failed"),
        (0.1, 5000, {}, "ok"),
        (0.0, 5000, {}, "warning"),
        (None, 0, {}, "ok"),
        (None, 0, {"stated_ap": 0.389}, "warning"),
    ],
)
def test_a_teacher_must_have_its_stated_ap_within_margin_and_sampling_error(
    ap: float | None, num_measured: int, teacher: dict[str, Any], state: str
) -> None:
    measured = dataclasses.replace(SOUND, teacher_ap=ap, num_measured=num_measured)
    assert found("teacher's AP", measured, **teacher).state == state


def test_the_number_of_images_behind_the_teachers_ap_is_shown() -> None:
    some = dataclasses.replace(SOUND, num_measured=400)
    assert (
        found("teacher's AP", some, stated_ap=0.38).text
        == "AP 0.389 on the first 400 of 5000 validation images, stated 0.38"
    )
    assert found("teacher's AP", SOUND).text.startswith("AP 0.389 on all 5000 validation images; ")


def test_an_infinite_loss_fails_and_is_shown() -> None:
    finding = found(
        "losses",
        dataclasses.replace(SOUND, losses={"classification": float("nan"), "bbox_regression": 1.0}),
    )
    assert finding.state == "failed"
    assert "classification nan" in finding.text


@pytest.mark.parametrize(
    ("norm", "state", "words"),
    [
        (0.01, "warning", "below 0.1"),
        (0.06, "ok", ""),
        (4e4, "ok", ""),
        (6e4, "warning", "above 100,000"),
        (0.0, "warning", "below"),
    ],
)
def test_a_gradient_outside_the_band_gives_a_warning_with_the_reason(
    norm: float, state: str, words: str
) -> None:
    finding = found(
        "gradients",
        dataclasses.replace(SOUND, gradient_norms={"detection": 0.5, "kdr": norm, "total": 1.0}),
    )
    assert (finding.state, words in finding.text) == (state, True)
    assert ("distill.kdr.weight" in finding.fix) == (state == "warning")


def test_a_level_that_no_method_reaches_is_named() -> None:
    texts = [
        finding.text
        for finding in findings_of(dataclasses.replace(SOUND, unreached=("P7",)), config_with())
    ]
    assert "no method's gradient reaches student levels P7" in texts


def test_a_step_that_changes_the_teacher_fails() -> None:
    finding = found(
        "teacher frozen",
        dataclasses.replace(SOUND, not_frozen=("another model.bn1.running_mean",)),
    )
    assert finding.state == "failed"
    assert "model.bn1.running_mean" in finding.text


def test_without_a_teacher_there_is_no_finding_about_one() -> None:
    plain = TrialConfig.model_validate({"data": {"dataset": "shapes"}})
    measured = Preflight(
        losses={"classification": 1.0}, gradient_norms={"detection": 0.5, "total": 0.5}, loaded=()
    )
    assert [finding.name for finding in findings_of(measured, plain)] == ["loaded", "losses"]


def test_measurements_are_stored_until_a_picture_is_missing_or_the_version_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, picture = Storage.at(tmp_path), tmp_path / "preflight" / "study" / "masks-1.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"")
    measured = dataclasses.replace(SOUND, pictures=(str(picture),))
    trial = Trial("a" * 20, config_with(), "data", "teacher")
    assert load_preflight(storage, "study", trial) is None
    save_preflight(storage, "study", trial, measured)
    assert load_preflight(storage, "study", trial) == measured
    assert load_preflight(storage, "study", dataclasses.replace(trial, key="b" * 20)) is None
    monkeypatch.setattr(findings, "PREFLIGHT_VERSION", 0)
    assert load_preflight(storage, "study", trial) is None
    monkeypatch.undo()
    picture.unlink()
    assert load_preflight(storage, "study", trial) is None
