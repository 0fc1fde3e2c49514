import pytest
import torch
from torch import nn

from kdr.distill.adapters import Adapter, BatchNormOfAnySize
from tests.distill.scenes import conv_of, drawn


def test_kaiming_weights_have_the_bound_of_a_equal_1() -> None:
    adapter = Adapter(64, 64, kind="conv3x3", norm="none", init="kaiming", seed=0)
    weight = conv_of(adapter).weight
    bound = (3 / (64 * 9)) ** 0.5  # gain 1, uniform
    assert 0.99 * bound < weight.abs().max().item() <= bound


def test_one_value_per_channel_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNormOfAnySize(3).double()
    for seed in range(5):
        norm(drawn(seed, 2, 3, 4, 4) + 5)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = norm(torch.full((1, 3, 1, 1), 7.0, dtype=torch.float64))
    expected = (7 - before["running_mean"]) / (before["running_var"] + norm.eps).sqrt()
    torch.testing.assert_close(found.flatten(), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 8), (8, 1), (24, 3), (20, 2), (7, 1)]
)
def test_group_norm_has_groups_of_at_least_eight_channels(channels: int, groups: int) -> None:
    adapter = Adapter(4, channels, kind="conv1x1", norm="group", init="kaiming", seed=0)
    norm = adapter.norm
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
