"""The methods that KDR reduces to when parts of it are switched off (docs/method.md, F.6)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.distill.kdr import Kdr
from tests.distill.scenes import (
    Scene,
    conv_of,
    link_of,
    make_kdr,
    make_scene,
    norm_of,
    summed,
)

LINKS = ("P4->P3", "P5->P4", "P6->P5", "P7->P6")
PLAIN: dict[str, Any] = {"review_links": (), "masks": "none", "padding": "counted"}
FULL = ("full",)


def test_without_links_masks_and_pyramid_it_is_fitnet() -> None:
    kdr = make_kdr(**PLAIN, project="identity", pyramid_scales=FULL, stirred=True)
    scene = make_scene()
    adapters = [conv_of(kdr.review.align[name]) for name in kdr.review.level_names]
    expected = summed(
        F.mse_loss(a(s), t) for a, s, t in zip(adapters, scene.student, scene.teacher, strict=True)
    )
    torch.testing.assert_close(scene.loss(kdr), expected)


def test_with_identity_adapters_as_well_it_is_the_mean_squared_error() -> None:
    kdr = make_kdr(
        **PLAIN, channels=(5, 5), align="identity", project="identity", pyramid_scales=FULL
    )
    scene = make_scene(channels=(5, 5))
    expected = summed(F.mse_loss(s, t) for s, t in zip(scene.student, scene.teacher, strict=True))
    torch.testing.assert_close(scene.loss(kdr), expected)


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ReviewKD's hierarchical context loss from its formula."""
    weights, losses = [1.0], [F.mse_loss(student, teacher)]
    for k in (4, 2, 1):
        if k < student.shape[2]:
            weights.append(weights[-1] / 2)
            losses.append(
                F.mse_loss(F.adaptive_avg_pool2d(student, k), F.adaptive_avg_pool2d(teacher, k))
            )
    return summed(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def test_pyramid_alone_is_the_same_level_context_loss() -> None:
    kdr = make_kdr(
        **PLAIN, channels=(5, 5), align="identity", project="identity", scales_below="height"
    )
    scene = make_scene(channels=(5, 5))
    expected = summed(context_loss(s, t) for s, t in zip(scene.student, scene.teacher, strict=True))
    torch.testing.assert_close(scene.loss(kdr), expected)


def test_review_alone_is_a_residual_review_under_the_mean_squared_error() -> None:
    kdr = make_kdr(
        channels=(5, 5), attention="none", masks="none", padding="counted", pyramid_scales=FULL,
        align="identity", project="identity", stirred=True,
    )  # fmt: skip
    scene = make_scene(channels=(5, 5))
    reviewed, expected = scene.student[-1], F.mse_loss(scene.student[-1], scene.teacher[-1])
    for level in (3, 2, 1, 0):
        x = scene.student[level]
        reviewed = x + kdr.logged_numbers()[f"zeta.{LINKS[level]}"] * 0.5 * F.interpolate(
            reviewed, size=x.shape[-2:]
        )
        expected = expected + F.mse_loss(reviewed, scene.teacher[level])
    torch.testing.assert_close(scene.loss(kdr), expected)


def reviewkd_loss(kdr: Kdr, scene: Scene) -> Tensor:
    """ReviewKD from its formulas (docs/method.md, A.1): fusion, then the context loss."""

    def adapted(adapter: nn.Module, x: Tensor) -> Tensor:
        conv, norm = conv_of(adapter), norm_of(adapter)
        x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        scale, offset = (values.view(1, -1, 1, 1) for values in (norm.weight, norm.bias))
        return (x - mean) / (var + 1e-5).sqrt() * scale + offset

    losses, residual = [], None
    for level in (4, 3, 2, 1, 0):
        name = kdr.review.level_names[level]
        fused = adapted(kdr.review.align[name], scene.student[level])
        if residual is not None:
            conv = conv_of(link_of(kdr.review, LINKS[level]).spatial)
            upsampled = F.interpolate(residual, size=fused.shape[-2:], mode="nearest")
            maps = F.conv2d(torch.cat([fused, upsampled], 1), conv.weight, conv.bias).sigmoid()
            fused = fused * maps[:, 0, None] + upsampled * maps[:, 1, None]
        residual = fused
        projected = adapted(kdr.review.project[name], fused)
        losses.append(context_loss(projected, scene.teacher[level]))
    return summed(losses)


def test_preset_kdr_paper_with_spatial_attention_and_no_masks_is_reviewkd() -> None:
    kdr = make_kdr(preset="kdr-paper", attention="spatial", masks="none", stirred=True)
    grids = ((25, 34), (13, 17), (7, 9), (4, 5), (2, 3))
    scene = make_scene(grids=grids).learning()
    found, expected = scene.loss(kdr), reviewkd_loss(kdr, scene)
    torch.testing.assert_close(found, expected)
    for of_kdr, of_reference in zip(
        torch.autograd.grad(found, scene.student),
        torch.autograd.grad(expected, scene.student),
        strict=True,
    ):
        torch.testing.assert_close(of_kdr, of_reference)


@pytest.mark.parametrize("attention", ["none", "spatial", "channel", "both"])
@pytest.mark.parametrize("links", [("P4->P3",), LINKS])
def test_every_residual_review_starts_at_the_loss_and_gradients_of_its_arm_without_links(
    attention: str, links: tuple[str, ...]
) -> None:
    scene = make_scene().learning()
    with_links = make_kdr(review_links=links, attention=attention)
    without = make_kdr(review_links=())
    losses = [scene.loss(kdr) for kdr in (with_links, without)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    gradients = [torch.autograd.grad(loss, scene.student, retain_graph=True) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    for loss in losses:
        torch.autograd.backward(loss)
    shared = dict(with_links.named_parameters())
    for name, parameter in without.named_parameters():
        torch.testing.assert_close(shared[name].grad, parameter.grad)
