import pytest
import torch
import torch.nn.functional as F

from kdr.distill.fitnet import Fitnet
from kdr.errors import ConfigError
from tests.distill.scenes import bias_of, conv_of, make_kdr, make_method, make_scene, summed


def test_it_is_the_mean_squared_error_of_adapted_features_on_every_level() -> None:
    fitnet, scene = make_method(Fitnet, stirred=True), make_scene()
    adapters = [fitnet.aligned.adapters[name] for name in fitnet.aligned.levels.names]
    (term,) = scene.terms(fitnet)
    assert (term.name, term.coefficient) == ("fitnet.feature", 1.0)
    adapted = [
        torch.einsum("oi,nihw->nohw", conv_of(a).weight[:, :, 0, 0], s) + bias_of(a)[:, None, None]
        for a, s in zip(adapters, scene.student, strict=True)
    ]
    expected = summed(F.mse_loss(a, t) for a, t in zip(adapted, scene.teacher, strict=True))
    torch.testing.assert_close(term.value, expected)


def test_it_is_kdr_without_links_masks_and_pyramid() -> None:
    kdr = make_kdr(
        review_links=(),
        masks="none",
        padding="counted",
        project="identity",
        pyramid_scales=("full",),
        stirred=True,
    )
    fitnet, scene = make_method(Fitnet), make_scene()
    fitnet.aligned.adapters.load_state_dict(kdr.review.align.state_dict())
    torch.testing.assert_close(scene.loss(fitnet), scene.loss(kdr))


def test_with_identity_adapters_equal_features_are_at_distance_0() -> None:
    fitnet = make_method(Fitnet, channels=(5, 5), align="identity")
    scene = make_scene(channels=(5, 5))
    assert not list(fitnet.parameters())
    expected = summed(F.mse_loss(s, t) for s, t in zip(scene.student, scene.teacher, strict=True))
    torch.testing.assert_close(scene.loss(fitnet), expected)
    scene.student[:] = scene.teacher
    assert scene.loss(fitnet) == 0


def test_only_named_levels_learn() -> None:
    scene = make_scene().learning()
    torch.autograd.backward(scene.loss(make_method(Fitnet, levels=("P4", "P6"))))
    assert [level.grad is not None for level in scene.student] == [False, True, False, True, False]


def test_levels_that_the_teacher_lacks_are_skipped_and_no_level_left_is_an_error() -> None:
    # the teacher has P3 to P5
    fitnet = make_method(Fitnet, teacher_levels=3, levels=("P5", "P6"))
    assert fitnet.aligned.levels.names == ("P5",)
    with pytest.raises(
        ConfigError,
        match=r"distill\.fitnet\.levels: must name a level .* got P6, P7\. They share P3, P4, P5",
    ):
        make_method(Fitnet, teacher_levels=3, levels=("P6", "P7"))


def test_student_features_are_resized_to_the_teachers_cells() -> None:
    grids = ((13, 17), (7, 9), (4, 5), (2, 3), (1, 2))
    scene = make_scene(grids=grids, teacher_grids=((12, 17), *grids[1:]))
    fitnet = make_method(Fitnet, levels=("P3",))
    adapted = fitnet.aligned.adapters["P3"](scene.student[0])
    expected = F.mse_loss(F.interpolate(adapted, (12, 17), mode="bilinear"), scene.teacher[0])
    torch.testing.assert_close(scene.loss(fitnet), expected)


def test_weight_1_is_the_unit_on_every_level() -> None:
    assert make_method(Fitnet).units([(8, 8)] * 5, 7.3) == {
        f"fitnet.feature.P{level}": 1.0 for level in range(3, 8)
    }
