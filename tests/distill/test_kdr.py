import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kdr.config.distill import KdrConfig
from kdr.config.method import MethodConfig
from kdr.distill.distance import masked_pyramid_distance
from kdr.distill.kdr import build_kdr
from kdr.distill.method import FeatureLevels, Setup, weighted_sum
from kdr.errors import ConfigError
from tests.distill.scenes import gradient_of, make_kdr, make_scene, summed

LINKS = ("P4->P3", "P5->P4", "P6->P5", "P7->P6")
PLAIN: dict[str, Any] = {"review_links": (), "masks": "none", "padding": "counted"}
FULL = ("full",)


# --- terms ---


def test_terms_are_named_unweighted_and_weighted_by_the_balance() -> None:
    scene = make_scene()
    foreground, background = scene.terms(make_kdr(foreground_share=0.25))
    assert (foreground.name, background.name) == ("kdr.foreground", "kdr.background")
    assert (foreground.coefficient, background.coefficient) == (0.25, 0.75)
    (feature,) = scene.terms(make_kdr(masks="none"))
    assert (feature.name, feature.coefficient) == ("kdr.feature", 1.0)
    other = scene.terms(make_kdr(foreground_share=0.9))
    assert [term.value for term in other] == [foreground.value, background.value]
    expected = 0.25 * foreground.value + 0.75 * background.value
    torch.testing.assert_close(weighted_sum([foreground, background]), expected)


def test_switching_decoupling_off_does_not_change_the_total_weight() -> None:
    scene = make_scene()
    for masks in ("boxes", "none"):
        terms = scene.terms(make_kdr(foreground_share=0.3, masks=masks))
        assert sum(term.coefficient for term in terms) == pytest.approx(1)


def test_regions_are_those_of_the_boxes_on_every_level() -> None:
    kdr = make_kdr(
        **(PLAIN | {"masks": "boxes"}),
        channels=(5, 5),
        align="identity",
        project="identity",
        mask_values="binary",
    )
    # boxes (10, 20, 60, 70), (50, 50, 135, 99)
    scene = make_scene(channels=(5, 5), image_sizes=[(100, 136)])
    grid = scene.student[0].shape[-2:]  # (13, 17): cells of 7.69 x 8 px
    mask = torch.zeros(1, *grid, dtype=torch.float64)
    mask[0, 2:10, 1:8] = 1
    mask[0, 6:13, 6:17] = 1
    measured = [
        masked_pyramid_distance(scene.student[0], scene.teacher[0], m, scales=("full", 4, 2, 1))
        for m in (mask, 1 - mask)
    ]
    distances = scene.level_distances(kdr)
    torch.testing.assert_close(distances[:, 0], torch.stack(measured))
    torch.testing.assert_close(
        distances.sum(1), torch.stack([term.value for term in scene.terms(kdr)])
    )


EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "preset": ("kdr-paper", {}),
    "foreground_share": (0.1, {}),
    "review_links": (("P4->P3",), {}),
    "attention": ("spatial", {}),
    "fusion": ("gated", {}),
    "gates": ("sigmoid", {}),
    "masks": ("none", {}),
    "mask_values": ("binary", {}),
    "pyramid_scales": (("full", 2), {}),
    "scales_below": ("height", {}),
    "normalisation": ("teacher_std", {}),
    "align": ("conv3x3", {}),
    "project": ("conv1x1", {}),
    "adapter_norm": ("batch", {}),
    "init": ("kaiming", {"channels": (8, 8), "stirred": False}),
    "upsample": ("bilinear", {}),
    "padding": ("counted", {}),
}
"""Each of KDR's own settings -> a value that must change the loss, and other settings it needs."""


@pytest.mark.parametrize(
    "setting", [name for name in KdrConfig.model_fields if name not in MethodConfig.model_fields]
)
def test_every_setting_has_its_effect(setting: str) -> None:
    value, needed = EFFECTS[setting]
    build: dict[str, Any] = {"channels": (6, 8), "stirred": True} | needed
    scene = make_scene(channels=build["channels"], grids=((17, 13), (9, 4), (5, 3), (3, 2), (2, 1)))
    before, after = (scene.loss(make_kdr(**build | change)) for change in ({}, {setting: value}))
    assert before.isfinite()
    assert after.isfinite()
    assert abs(after - before) > 1e-6 * abs(before)


@pytest.mark.parametrize(
    ("normalisation", "stds"),
    [
        ("level_std", [0.5, 1.5, 2.5, 3.5, 4.5]),  # those of `make_method`
        ("teacher_std", [math.sqrt((0.5**2 + 1.5**2 + 2.5**2 + 3.5**2 + 4.5**2) / 5)] * 5),
    ],
)
def test_normalisation_divides_both_features_by_the_teachers_std(
    normalisation: str, stds: list[float]
) -> None:
    same: dict[str, Any] = {
        "channels": (5, 5),
        "align": "identity",
        "project": "identity",
        "review_links": (),
    }
    scene = make_scene(channels=(5, 5))
    found = scene.loss(make_kdr(**same, normalisation=normalisation))
    for features in (scene.student, scene.teacher):
        features[:] = [x / std for x, std in zip(features, stds, strict=True)]
    torch.testing.assert_close(found, scene.loss(make_kdr(**same)))


# --- gradients ---

ARMS: dict[str, dict[str, Any]] = {
    f"{attention}, {fusion}, {gates}": {"attention": attention, "fusion": fusion, "gates": gates}
    for attention, fusion, gates in itertools.product(
        ("none", "spatial", "channel", "both"), ("residual", "gated"), ("softmax", "sigmoid")
    )
} | {
    "no links": {"review_links": ()},
    "one link": {"review_links": LINKS[1:2]},
    "no masks": {"masks": "none"},
    "full scale": {"pyramid_scales": FULL},
    "one bin": {"pyramid_scales": (1,)},
    "paper": {"preset": "kdr-paper"},
    "group norm": {"adapter_norm": "group"},
    "identity projection": {"project": "identity"},
    "foreground only": {"foreground_share": 1.0},
    "background only": {"foreground_share": 0.0},
}


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in torch's __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("arm", ARMS)
def test_every_parameter_takes_part_in_every_step_of_every_arm(arm: str) -> None:
    # DDP raises in the second step if a parameter got no gradient in the first
    kdr = torch.nn.parallel.DistributedDataParallel(make_kdr(**ARMS[arm]))
    scene = make_scene()
    for _ in range(2):
        kdr.zero_grad()
        torch.autograd.backward(scene.loss(kdr))
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in kdr.parameters()
    )


@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_gradient_of_the_whole_is_its_derivative(preset: str) -> None:
    kdr = make_kdr(preset=preset, channels=(2, 3), num_levels=3, stirred=True)
    scene = make_scene(
        channels=(2, 3), grids=((5, 6), (3, 3), (2, 1)), image_sizes=[(100, 136), (70, 90)]
    ).learning()
    parameters = list(kdr.parameters())
    torch.autograd.gradcheck(
        lambda *_: scene.loss(kdr), (*scene.student, *parameters), fast_mode=True
    )


def test_gradients_reach_every_student_level_and_never_the_teacher() -> None:
    scene = make_scene().learning()
    for x in scene.teacher:
        x.requires_grad_()
    torch.autograd.backward(scene.loss(make_kdr()))
    assert all(x.grad is None for x in scene.teacher)
    gradients = [gradient_of(x) for x in scene.student]
    assert all(gradient.isfinite().all() and (gradient != 0).any() for gradient in gradients)


def test_a_levels_loss_depends_on_the_levels_its_active_links_reach() -> None:
    scene = make_scene().learning()
    kdr = make_kdr(review_links=("P4->P3", "P6->P5"), stirred=True)
    distances = scene.level_distances(kdr).sum(0)
    reached = [
        [
            g is not None and bool((g != 0).any())
            for g in torch.autograd.grad(d, scene.student, retain_graph=True, allow_unused=True)
        ]
        for d in distances
    ]
    T, o = True, False
    assert reached == [
        [T, T, o, o, o],
        [o, T, o, o, o],
        [o, o, T, T, o],
        [o, o, o, T, o],
        [o, o, o, o, T],
    ]


# --- invariances ---


def test_equal_features_have_loss_0_under_identity_adapters() -> None:
    scene = make_scene(channels=(5, 5))
    scene.teacher[:] = scene.student
    assert scene.loss(make_kdr(channels=(5, 5))) == 0  # Dirac adapters, links at 0
    assert scene.loss(make_kdr(channels=(5, 5), init="kaiming")) > 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"attention": "channel", "fusion": "gated"}, {"masks": "none", "project": "conv1x1"}],
)
def test_padding_has_no_effect_under_preset_kdr(settings: dict[str, Any]) -> None:
    scene, dirty = make_scene(), make_scene()
    for x in (*dirty.student, *dirty.teacher):
        height, width = x.shape[-2:]
        x[1, :, -(-71 * height // 100) :] += 1e3
        x[2, :, :, -(-50 * width // 136) :] -= 1e3
    for kdr in (
        make_kdr(stirred=True, **settings),
        make_kdr(stirred=True, upsample="bilinear", **settings),
    ):
        assert torch.equal(scene.loss(kdr), dirty.loss(kdr))
    counted = make_kdr(stirred=True, padding="counted", **settings)
    assert not torch.isclose(scene.loss(counted), dirty.loss(counted))


@pytest.mark.parametrize("images", [(2, 0, 1), (0, 1, 2, 0, 1, 2)])
@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_order_and_copies_of_images_have_no_effect(preset: str, images: tuple[int, ...]) -> None:
    scene, kdr = make_scene(), make_kdr(preset=preset, stirred=True)
    torch.testing.assert_close(scene.of(images).loss(kdr), scene.loss(kdr))


def test_every_image_of_a_batch_counts_equally() -> None:
    scene, kdr = make_scene(), make_kdr(stirred=True)
    alone = [scene.of([i]).loss(kdr) for i in range(3)]
    torch.testing.assert_close(scene.loss(kdr), torch.stack(alone).mean())


# --- corners ---


def test_without_boxes_every_cell_is_background() -> None:
    scene = make_scene()
    scene.boxes[:] = [torch.zeros(0, 4)] * 3
    foreground, background = scene.terms(make_kdr(stirred=True))
    (whole,) = scene.terms(make_kdr(stirred=True, masks="none"))
    assert foreground.value == 0
    torch.testing.assert_close(background.value, whole.value)


def test_without_background_its_term_is_0() -> None:
    scene = make_scene()
    scene.boxes[:] = [torch.tensor([[0.0, 0.0, float(w), float(h)]]) for h, w in scene.image_sizes]
    foreground, background = scene.terms(make_kdr(stirred=True))
    (whole,) = scene.terms(make_kdr(stirred=True, masks="none"))
    assert background.value == 0
    # a single box has the same weight in all its cells
    torch.testing.assert_close(foreground.value, whole.value)


@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_one_image_with_one_cell_levels_is_finite(preset: str) -> None:
    grids = ((4, 4), (2, 2), (1, 1), (1, 1), (1, 1))
    scene = make_scene(grids=grids, image_sizes=[(100, 136)]).learning()
    loss = scene.loss(make_kdr(preset=preset))
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert all(gradient_of(x).isfinite().all() for x in scene.student)


def test_levels_are_resized_to_the_teachers_cells_and_that_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher_grids = ((13, 17), (7, 9), (4, 6), (2, 3), (1, 2))
    scene = make_scene(teacher_grids=teacher_grids)
    kdr = make_kdr(**PLAIN, project="conv1x1", pyramid_scales=FULL, stirred=True)
    with caplog.at_level(logging.INFO, logger="kdr.distill.cells"):
        found = scene.loss(kdr)
        scene.loss(kdr)
    expected = []
    for name, s, t in zip(kdr.review.level_names, scene.student, scene.teacher, strict=True):
        projected = kdr.review.project[name](kdr.review.align[name](s))
        resized = F.interpolate(projected, size=t.shape[-2:], mode="bilinear", align_corners=False)
        expected.append(F.mse_loss(resized, t))
    torch.testing.assert_close(found, summed(expected))
    assert [record.getMessage() for record in caplog.records] == [
        "kdr: student level P5 of (4, 5) cells is resized to the teacher's (4, 6)"
    ]


def test_levels_without_a_partner_learn_nothing_and_lose_their_links(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="kdr.distill"):
        setup = Setup(
            student=FeatureLevels((8, 16, 32, 64, 128), (6,) * 5),
            teacher=FeatureLevels((4, 8, 16, 32, 64), (8,) * 5),
            seed=0,
            total_steps=10,
        )
        kdr = build_kdr(KdrConfig(review_links=LINKS, normalisation="none"), setup).double()
    assert kdr.levels.pairs == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert list(kdr.logged_numbers()) == [f"zeta.{link}" for link in LINKS[:3]]
    assert "student levels P7 learn nothing" in caplog.text
    assert "review links P7->P6 are dropped" in caplog.text
    scene = make_scene()
    matched = replace(scene, student=scene.student[:4], teacher=scene.teacher[:4])
    shifted = replace(scene, teacher=[torch.zeros(3, 8, 26, 34), *scene.teacher[:4]])
    alone = make_kdr(num_levels=4)
    assert torch.equal(shifted.loss(kdr), matched.loss(alone))


@pytest.mark.parametrize("link", ["P5->P3", "P3->P4", "P9->P8"])
def test_an_unknown_link_is_an_error_that_lists_the_known_ones(link: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"review_links: each must be one of P4->P3, .*, got {link}\. A link joins",
    ):
        make_kdr(review_links=("P4->P3", link))


@pytest.mark.parametrize("teacher_std", [None, (0.0,), (float("nan"),)])
def test_a_missing_zero_or_nan_std_is_an_error(teacher_std: tuple[float, ...] | None) -> None:
    levels = FeatureLevels((8.0,), (4,))
    setup = Setup(levels, levels, seed=0, total_steps=10, teacher_std=teacher_std)
    with pytest.raises(
        ConfigError, match=r"distill\.kdr\.normalisation: .*got (0\.0|nan) at P3.*use none"
    ):
        build_kdr(KdrConfig(), setup)


def test_units_are_the_shares_of_the_regions_over_the_variance_of_the_level() -> None:
    assert make_kdr(masks="none", num_levels=2).units([], 0) == {
        "kdr.feature.P3": 1,
        "kdr.feature.P4": 1,
    }
    units = make_kdr(foreground_share=0.25, normalisation="level_std", num_levels=2).units([], 0)
    assert units == {
        "kdr.foreground.P3": 0.25 / 0.5**2,
        "kdr.foreground.P4": 0.25 / 1.5**2,
        "kdr.background.P3": 0.75 / 0.5**2,
        "kdr.background.P4": 0.75 / 1.5**2,
    }


# --- precision, devices, state ---


@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_loss_under_bfloat16_autocast_is_close_to_that_in_float32(preset: str) -> None:
    kdr = make_kdr(preset=preset, channels=(16, 16), stirred=True).float()
    scene = make_scene(channels=(16, 16), dtype=torch.float32)
    exact = scene.loss(kdr)
    rounded = make_scene(channels=(16, 16), dtype=torch.bfloat16).learning()
    with torch.autocast("cpu", torch.bfloat16):
        found = rounded.loss(kdr)
    torch.autograd.backward(found)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=2e-2)
    gradients = [gradient_of(x) for x in rounded.student]
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_a_step_never_waits_for_the_device(preset: str) -> None:
    # a fake tensor has no values: reading one on the host raises
    kdr = make_kdr(preset=preset)
    with FakeTensorMode(allow_non_fake_inputs=True):
        scene = make_scene(teacher_grids=((14, 17), (7, 9), (4, 5), (2, 3), (1, 2))).learning()
        gradients = torch.autograd.grad(scene.loss(kdr), scene.student)
        assert [g.shape for g in gradients] == [x.shape for x in scene.student]
        with pytest.raises(DataDependentOutputException):
            float(gradients[0].sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_on_a_gpu_a_step_gives_the_same_loss_without_synchronising(preset: str) -> None:
    scene, kdr = make_scene(), make_kdr(preset=preset, stirred=True)
    expected = scene.loss(kdr)
    for tensors in (scene.student, scene.teacher, scene.boxes):
        tensors[:] = [x.cuda() for x in tensors]
    kdr = make_kdr(preset=preset, stirred=True).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = scene.loss(kdr)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("preset", ["kdr", "kdr-paper"])
def test_a_restored_state_gives_the_same_loss(preset: str) -> None:
    scene, trained = make_scene(), make_kdr(preset=preset, stirred=True)
    scene.loss(trained)  # moves running statistics
    restored = make_kdr(preset=preset, seed=1)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(scene.loss(restored), scene.loss(trained))


def test_zetas_are_logged_by_link_and_have_no_dimensions_and_so_no_weight_decay() -> None:
    kdr = make_kdr(review_links=("P4->P3", "P6->P5"))
    assert {name: zeta.item() for name, zeta in kdr.logged_numbers().items()} == {
        "zeta.P4->P3": 0.0,
        "zeta.P6->P5": 0.0,
    }
    assert [name for name, parameter in kdr.named_parameters() if parameter.ndim == 0] == [
        "review.links.P4->P3.zeta",
        "review.links.P6->P5.zeta",
    ]
    assert make_kdr(fusion="gated").logged_numbers() == {}
