import torch

from kdr.distill.reviewkd import ReviewKd
from tests.distill.scenes import make_kdr, make_method, make_scene

GRIDS = ((25, 34), (13, 17), (7, 9), (4, 5), (2, 3))


def test_it_is_the_preset_kdr_paper_with_spatial_attention_and_no_masks() -> None:
    # test_kdr_reductions compares this preset with the formulas of ReviewKD
    kdr = make_kdr(preset="kdr-paper", attention="spatial", masks="none", stirred=True)
    reviewkd, scene = make_method(ReviewKd), make_scene(grids=GRIDS).learning()
    reviewkd.review.load_state_dict(kdr.review.state_dict())
    losses = scene.loss(reviewkd), scene.loss(kdr)
    torch.testing.assert_close(*losses)
    for one, other in zip(
        *(torch.autograd.grad(loss, scene.student) for loss in losses), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_all_levels_learn_and_the_coarse_ones_reach_the_fine() -> None:
    scene = make_scene(grids=GRIDS)
    reviewkd = make_method(ReviewKd)
    assert list(reviewkd.review.links) == ["P4->P3", "P5->P4", "P6->P5", "P7->P6"]
    (term,) = scene.terms(reviewkd)
    assert (term.name, term.coefficient) == ("reviewkd.feature", 1.0)


def test_levels_of_the_teacher_alone_bound_the_chain() -> None:
    assert list(make_method(ReviewKd, teacher_levels=3).review.links) == ["P4->P3", "P5->P4"]


def test_weight_1_is_the_unit_on_every_level() -> None:
    units = make_method(ReviewKd).units([(8, 8)] * 5, 7.3)
    assert units == {f"reviewkd.feature.P{level}": 1.0 for level in range(3, 8)}
