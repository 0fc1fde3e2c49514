import pytest
import torch
import torch.nn.functional as F

from kdr.distill.mgd import generation_distance, kept_cells


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(shape=(4, 9, 13), **changes):
    return kept_cells(
        shape, **{"masked_share": 0.65, "seed": 0, "step": 7, "level": "P3", **changes}
    )


def test_distance_is_the_sum_of_squares_of_an_image():
    generated, teacher = drawn(0, 3, 4, 5, 6), drawn(1, 3, 4, 5, 6)
    torch.testing.assert_close(
        generation_distance(generated, teacher),
        F.mse_loss(generated, teacher, reduction="sum") / 3,
    )


def test_an_equal_address_gives_equal_cells_and_any_other_address_others():
    assert torch.equal(kept(), kept())
    for change in ({"seed": 1}, {"step": 8}, {"level": "P4"}):
        assert not torch.equal(kept(**change), kept())


def test_drawing_them_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    kept()
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_that_share_a_batch_see_what_one_process_would():
    alone = kept((6, 9, 13))
    shares = [kept((2, 9, 13), share=(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), alone)


@pytest.mark.parametrize("masked_share", [0.0, 0.45, 0.65, 1.0])
def test_the_share_of_cells_left_out_is_as_set(masked_share):
    left_out = 1 - kept((16, 64, 64), masked_share=masked_share).double().mean()
    assert left_out.item() == pytest.approx(masked_share, abs=0.01)


def test_the_method_generates_the_teachers_features_from_the_cells_that_are_kept(
    make_scene, make_method
):
    mgd, scene = make_method("mgd", masked_share=0.5, seed=3, stirred=True), make_scene()
    (term,) = scene.terms(mgd, step=11)
    assert (term.name, term.coefficient) == ("mgd.feature", 1.0)
    expected = 0.0
    for level, (student, teacher) in enumerate(zip(scene.student, scene.teacher, strict=True)):
        name = f"P{3 + level}"
        adapter, (first, _, second) = mgd.aligned.adapters[name].conv, mgd.generators[name]
        seen = kept_cells((3, *student.shape[-2:]), masked_share=0.5, seed=3, step=11, level=name)
        hidden = F.conv2d(
            F.conv2d(student, adapter.weight, adapter.bias) * seen,
            first.weight,
            first.bias,
            padding=1,
        )
        generated = F.conv2d(hidden.clamp(min=0), second.weight, second.bias, padding=1)
        expected = expected + (generated - teacher).square().sum() / 3
    torch.testing.assert_close(term.value, expected)


def test_with_every_cell_left_out_the_student_learns_nothing(make_scene, make_method):
    scene = make_scene().learning()
    scene.loss(make_method("mgd", masked_share=1.0)).backward()
    assert all((level.grad == 0).all() for level in scene.student)


def test_every_step_has_masks_of_its_own_and_a_step_repeated_the_same(make_scene, make_method):
    mgd, scene = make_method("mgd"), make_scene()
    assert scene.loss(mgd, step=5) == scene.loss(mgd, step=5) != scene.loss(mgd, step=6)


def test_the_mean_over_processes_that_share_a_batch_is_its_loss(make_scene, make_method):
    scene = make_scene(image_sizes=((100, 136), (71, 136), (100, 50), (100, 136)))
    shares = [
        scene.of(range(rank, 4, 2)).loss(make_method("mgd"), step=5, share=(rank, 2))
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(shares) / 2, scene.loss(make_method("mgd"), step=5))


@pytest.mark.parametrize(
    ("weight", "finest", "expected"),
    [(2e-5, 3, (86, 21.5, 5.4, 1.4, 0.4)), (5e-7, 2, (8.6, 2.2, 0.54, 0.13))],
)
def test_its_units_are_the_sums_of_the_papers_weights(
    make_method, coco_grids, weight, finest, expected
):
    levels = tuple(f"P{finest + i}" for i in range(len(expected)))
    mgd = make_method("mgd", channels=(256, 256), finest=finest, levels=levels)
    units = mgd.units(coco_grids(finest), 7.3)
    assert [weight * units[f"mgd.feature.{name}"] for name in levels] == pytest.approx(
        expected, rel=0.04
    )
