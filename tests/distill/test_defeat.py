import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.distill.defeat import Defeat, decoupled_distances
from kdr.distill.distance import masked_pyramid_distance
from kdr.distill.masks import background_mask, boxes_of_level, foreground_mask, padded_boxes
from kdr.distill.method import Outputs
from tests.distill.scenes import Scene, conv_of, drawn, make_method, make_scene, summed


def test_each_region_is_half_the_mean_over_its_elements_in_the_whole_batch() -> None:
    student, teacher = drawn(0, 3, 4, 5, 6), drawn(1, 3, 4, 5, 6)
    foreground = drawn(2, 3, 5, 6) > 0.5
    regions = torch.stack([foreground, ~foreground])
    squares = (student - teacher).square().movedim(1, -1)
    expected = [squares[region].mean() / 2 for region in regions]
    found = decoupled_distances(student, teacher, regions)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_region_without_cells_adds_nothing_and_no_gradient() -> None:
    student, teacher = drawn(0, 2, 3, 4, 4).requires_grad_(), drawn(1, 2, 3, 4, 4)
    foreground = torch.zeros(2, 4, 4)
    found = decoupled_distances(student, teacher, torch.stack([foreground, 1 - foreground]))
    assert found[0] == 0
    torch.testing.assert_close(found[1], (student - teacher).square().mean() / 2)
    (gradient,) = torch.autograd.grad(found[0], student)
    assert (gradient == 0).all()


def test_gradient_is_the_derivative_and_none_reaches_the_teacher() -> None:
    student, teacher = drawn(0, 2, 2, 3, 4).requires_grad_(), drawn(1, 2, 2, 3, 4).requires_grad_()
    regions = torch.stack([drawn(2, 2, 3, 4) > 0, drawn(2, 2, 3, 4) <= 0])
    assert torch.autograd.gradcheck(lambda s: decoupled_distances(s, teacher, regions), student)
    torch.autograd.backward(decoupled_distances(student, teacher, regions).sum())
    assert teacher.grad is None


def neck_loss_by_loops(defeat: Defeat, scene: Scene, weights: dict[str, float]) -> float:
    """DeFeat's neck loss (docs/method.md, A.2) level by level, with boxes painted one by one."""
    total, num_levels = 0.0, len(scene.student)
    H_b, W_b = scene.batch_size
    for level in range(num_levels):
        adapter = conv_of(defeat.aligned.adapters[f"P{3 + level}"])
        adapted = F.conv2d(scene.student[level], adapter.weight, adapter.bias, padding=1)
        H, W = adapted.shape[-2:]
        squares: dict[str, list[float]] = {"foreground": [], "background": []}
        for n, boxes in enumerate(scene.boxes):
            covered = torch.zeros(H, W, dtype=torch.bool)
            for x1, y1, x2, y2 in boxes.tolist():
                size = math.sqrt((x2 - x1) * (y2 - y1))
                if min(max(math.floor(math.log2(size / 56)), 0), num_levels - 1) == level:
                    rows = slice(
                        math.floor(y1 * H / H_b),
                        max(math.ceil(y2 * H / H_b), math.floor(y1 * H / H_b) + 1),
                    )
                    columns = slice(
                        math.floor(x1 * W / W_b),
                        max(math.ceil(x2 * W / W_b), math.floor(x1 * W / W_b) + 1),
                    )
                    covered[rows, columns] = True
            difference = (adapted[n] - scene.teacher[level][n]).square()
            squares["foreground"] += difference[:, covered].flatten().tolist()
            squares["background"] += difference[:, ~covered].flatten().tolist()
        for region, weight in weights.items():
            total += weight * sum(squares[region]) / max(1, 2 * len(squares[region])) / num_levels
    return total


def test_the_method_is_the_neck_loss_of_the_original() -> None:
    defeat = make_method(Defeat, foreground_weight=3.0, background_weight=12.0, stirred=True)
    scene = make_scene()
    # one box for each of two levels
    scene.boxes[0] = torch.tensor([[10.0, 20.0, 60.0, 70.0], [0.0, 2.0, 130.0, 98.0]])
    terms = scene.terms(defeat)
    assert [(term.name, term.coefficient) for term in terms] == [
        ("defeat.foreground", 3.0),
        ("defeat.background", 12.0),
    ]
    expected = neck_loss_by_loops(defeat, scene, {"foreground": 3.0, "background": 12.0})
    assert scene.loss(defeat).item() == pytest.approx(expected, rel=1e-12)


def test_it_is_kdrs_distance_with_all_images_of_the_batch_as_one() -> None:
    # a masked mean over one image made of all images weighs each image by its mass
    def as_one_image(maps: Tensor) -> Tensor:
        return maps.movedim(0, -3).flatten(-3, -2)[None]

    defeat, scene = make_method(Defeat, stirred=True), make_scene()
    stacked = padded_boxes(scene.boxes)
    distances = []
    for level, (_, student, teacher) in enumerate(
        defeat.aligned(Outputs(scene.student), Outputs(scene.teacher))
    ):
        valid = torch.ones(len(teacher), *teacher.shape[-2:], dtype=torch.bool)
        foreground = foreground_mask(
            boxes_of_level(stacked, level, 5), valid, scene.batch_size, values="binary"
        )
        for weight, region in ((4.0, foreground), (16.0, background_mask(foreground, valid))):
            as_one = as_one_image(student), as_one_image(teacher), as_one_image(region)
            distances.append(weight / 2 / 5 * masked_pyramid_distance(*as_one, scales=["full"]))
    torch.testing.assert_close(scene.loss(defeat), summed(distances))


def test_it_starts_near_the_energy_of_the_teacher() -> None:
    defeat, scene = make_method(Defeat), make_scene()
    silent = replace(scene, student=[torch.zeros_like(level) for level in scene.student])
    torch.testing.assert_close(scene.loss(defeat), silent.loss(defeat), rtol=1e-2, atol=0)


def test_its_units_are_those_of_the_authors_weights_for_coco() -> None:
    units = make_method(Defeat).units([(8, 8)] * 5, 7.3)
    assert units == {
        f"defeat.{region}.P{level}": pytest.approx(unit)
        for region, unit in (("foreground", 0.4), ("background", 1.6))
        for level in range(3, 8)
    }
