from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.distill.mgd import Mgd, generation_distance, kept_cells
from tests.distill.scenes import (
    coco_grids,
    conv_of,
    drawn,
    gradient_of,
    make_method,
    make_scene,
    summed,
)


def kept(shape: tuple[int, int, int] = (4, 9, 13), **changes: Any) -> Tensor:
    return kept_cells(
        shape, **{"masked_share": 0.65, "seed": 0, "step": 7, "level": "P3", **changes}
    )


def test_distance_is_the_sum_of_squares_of_an_image() -> None:
    generated, teacher = drawn(0, 3, 4, 5, 6), drawn(1, 3, 4, 5, 6)
    torch.testing.assert_close(
        generation_distance(generated, teacher),
        F.mse_loss(generated, teacher, reduction="sum") / 3,
    )


def test_equal_addresses_draw_equal_cells_and_others_draw_others() -> None:
    assert torch.equal(kept(), kept())
    for change in ({"seed": 1}, {"step": 8}, {"level": "P4"}):
        assert not torch.equal(kept(**change), kept())


def test_drawing_cells_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    kept()
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_that_share_a_batch_draw_what_one_process_draws() -> None:
    alone = kept((6, 9, 13))
    shares = [kept((2, 9, 13), share=(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), alone)


@pytest.mark.parametrize("masked_share", [0.0, 0.45, 0.65, 1.0])
def test_the_share_of_masked_cells_is_as_set(masked_share: float) -> None:
    left_out = 1 - kept((16, 64, 64), masked_share=masked_share).double().mean()
    assert left_out.item() == pytest.approx(masked_share, abs=0.01)


def test_the_method_generates_the_teachers_features_from_the_visible_cells() -> None:
    mgd, scene = make_method(Mgd, masked_share=0.5, seed=3, stirred=True), make_scene()
    (term,) = scene.terms(mgd, step=11)
    assert (term.name, term.coefficient) == ("mgd.feature", 1.0)
    expected = []
    for level, (student, teacher) in enumerate(zip(scene.student, scene.teacher, strict=True)):
        name = f"P{3 + level}"
        adapter, generator = conv_of(mgd.aligned.adapters[name]), mgd.generators[name]
        assert isinstance(generator, nn.Sequential)
        first, second = conv_of(generator[0]), conv_of(generator[2])
        height, width = student.shape[-2:]
        seen = kept_cells((3, height, width), masked_share=0.5, seed=3, step=11, level=name)
        hidden = F.conv2d(
            F.conv2d(student, adapter.weight, adapter.bias) * seen,
            first.weight,
            first.bias,
            padding=1,
        )
        generated = F.conv2d(hidden.clamp(min=0), second.weight, second.bias, padding=1)
        expected.append((generated - teacher).square().sum() / 3)
    torch.testing.assert_close(term.value, summed(expected))


def test_with_every_cell_masked_the_student_learns_nothing() -> None:
    scene = make_scene().learning()
    torch.autograd.backward(scene.loss(make_method(Mgd, masked_share=1.0)))
    assert all((gradient_of(level) == 0).all() for level in scene.student)


def test_each_step_has_its_own_masks_and_repeating_it_the_same_ones() -> None:
    mgd, scene = make_method(Mgd), make_scene()
    assert scene.loss(mgd, step=5) == scene.loss(mgd, step=5) != scene.loss(mgd, step=6)


def test_the_loss_of_a_batch_is_the_mean_over_processes_that_share_it() -> None:
    scene = make_scene(image_sizes=((100, 136), (71, 136), (100, 50), (100, 136)))
    shares = [
        scene.of(range(rank, 4, 2)).loss(make_method(Mgd), step=5, share=(rank, 2))
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(shares) / 2, scene.loss(make_method(Mgd), step=5))


@pytest.mark.parametrize(
    ("weight", "finest", "expected"),
    [(2e-5, 3, (86, 21.5, 5.4, 1.4, 0.4)), (5e-7, 2, (8.6, 2.2, 0.54, 0.13))],
)
def test_its_units_are_the_sums_of_the_papers_weights(
    weight: float, finest: int, expected: tuple[float, ...]
) -> None:
    levels = tuple(f"P{finest + i}" for i in range(len(expected)))
    mgd = make_method(Mgd, channels=(256, 256), finest=finest, levels=levels)
    units = mgd.units(coco_grids(finest), 7.3)
    assert [weight * units[f"mgd.feature.{name}"] for name in levels] == pytest.approx(
        expected, rel=0.04
    )
