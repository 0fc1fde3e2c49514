import pytest
import torch

from kdr.config.distill import DistillConfig, KdrConfig
from kdr.distill.kdr import Kdr
from kdr.distill.method import FeatureLevels, Term, weighted_sum
from kdr.distill.methods import build_methods, needs_level_std

LEVELS = FeatureLevels((8.0, 16.0), (4, 4))


def built(distill, seed=0):
    return build_methods(distill, student=LEVELS, teacher=LEVELS, seed=seed, total_steps=100, level_std={0: 1.0, 1: 2.0})


def test_every_method_that_can_be_set_can_be_built():
    everything = DistillConfig(**{name: {} for name in DistillConfig.model_fields})
    assert list(built(everything)) == list(DistillConfig.model_fields)
    assert isinstance(built(everything)["kdr"], Kdr)


def test_without_methods_there_is_nothing_to_train_beside_the_student():
    assert not list(built(DistillConfig()).parameters())
    assert not needs_level_std(DistillConfig())


@pytest.mark.parametrize(("normalisation", "needed"), [("teacher_std", True), ("none", False)])
def test_the_teachers_spread_is_needed_where_features_are_divided_by_it(normalisation, needed):
    assert needs_level_std(DistillConfig(kdr=KdrConfig(normalisation=normalisation))) is needed


@pytest.mark.parametrize("name", DistillConfig.model_fields)
def test_a_method_gives_the_same_scalar_terms_in_every_step_and_its_seed_decides_its_weights(name):
    settings = DistillConfig(**{name: {"init": "kaiming"}})
    first, again, other = built(settings)[name], built(settings)[name], built(settings, seed=1)[name]
    features = [torch.randn(2, 4, 6, 6), torch.randn(2, 4, 3, 3)]
    call = {
        "boxes": [torch.tensor([[0.0, 0.0, 20.0, 20.0]]), torch.zeros(0, 4)],
        "image_sizes": [(48, 48)] * 2,
        "batch_size": (48, 48),
    }
    early, late = (first(features, features, **call, step=step) for step in (0, 99))
    assert [term.name for term in early] == [term.name for term in late]
    assert all(term.name.startswith(f"{name}.") and term.value.shape == () for term in early)
    assert [term.coefficient for term in early] == [0.0] * len(early)
    assert weighted_sum(again(features, features, **call, step=99)) == weighted_sum(late)
    assert weighted_sum(other(features, features, **call, step=99)) != weighted_sum(late)


def test_the_loss_of_a_method_is_the_weighted_sum_of_its_terms():
    terms = [Term("a.x", torch.tensor(2.0, requires_grad=True), 0.5), Term("a.y", torch.tensor(4.0), 3.0)]
    loss = weighted_sum(terms)
    loss.backward()
    assert loss.item() == 13.0
    assert terms[0].value.grad.item() == 0.5
