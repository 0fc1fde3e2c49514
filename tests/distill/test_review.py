import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.distill.adapters import AdapterNorm
from kdr.distill.review import Attention, Fusion, Gates, Link, ReviewChain, Upsample
from kdr.errors import ConfigError
from tests.distill.scenes import bias_of, conv_of, drawn, link_of, norm_of, stir, summed

NAMES = ["P3", "P4", "P5", "P6"]
LINKS = ["P4->P3", "P5->P4", "P6->P5"]
GRIDS = [(9, 11), (5, 6), (3, 3), (1, 2)]


def pyramid(seed: int = 0, channels: int = 4, images: int = 2) -> list[Tensor]:
    return [drawn(seed + level, images, channels, *grid) for level, grid in enumerate(GRIDS)]


def chain(
    *, channels: tuple[int, int] = (4, 4), stirred: bool = True, seed: int = 0, **settings: Any
) -> ReviewChain:
    defaults = {
        "links": LINKS,
        "attention": "both",
        "fusion": "residual",
        "gates": "softmax",
        "align": "conv1x1",
        "project": "conv3x3",
        "norm": "none",
        "init": "dirac",
        "upsample": "nearest",
    }
    review = ReviewChain(
        NAMES, [channels[0]] * 4, [channels[1]] * 4, seed=seed, **(defaults | settings)
    ).double()
    return stir(review, seed=3, by=0.5) if stirred else review


def no_padding() -> list[Tensor | None]:
    return [None] * 4


def right_half() -> list[Tensor]:
    """Padding in the right half of the second image."""
    masks = [torch.zeros(2, 1, *grid, dtype=torch.bool) for grid in GRIDS]
    for mask in masks:
        mask[1, :, :, (mask.shape[-1] + 1) // 2 :] = True
    return masks


def fused_by_formula(
    link: Link,
    x: Tensor,
    coarse: Tensor,
    valid: Tensor,
    *,
    attention: Attention,
    gates: Gates,
    fusion: Fusion,
    upsample: Upsample,
) -> Tensor:
    """docs/method.md, F.2, with concatenation, softmax and masked mean written out."""
    corners = None if upsample == "nearest" else False
    u = valid * F.interpolate(coarse, size=x.shape[-2:], mode=upsample, align_corners=corners)
    z = torch.cat([x, u], 1)
    n, m, height, width = x.shape
    p, q = x.new_zeros(n, 2, 1, height, width), x.new_zeros(n, 2, m, 1, 1)
    if attention in ("spatial", "both"):
        p = F.conv2d(z, conv_of(link.spatial).weight, bias_of(link.spatial))[:, :, None]
    if attention in ("channel", "both"):
        mean = (z * valid).sum((2, 3)) / valid.sum((2, 3))
        squeeze, excite = (conv_of(c).weight[:, :, 0, 0] for c in (link.squeeze, link.excite))
        hidden = (mean @ squeeze.T + bias_of(link.squeeze)).relu()
        q = (hidden @ excite.T + bias_of(link.excite)).view(n, 2, m, 1, 1)
    if gates == "softmax":
        gate = (p + q).softmax(1)
    else:
        gate = {
            "none": torch.full_like(p, 0.5),
            "spatial": p.sigmoid(),
            "channel": q.sigmoid(),
            "both": p.sigmoid() * q.sigmoid(),
        }[attention]
    if fusion == "gated":
        return gate[:, 0] * x + gate[:, 1] * u
    assert link.zeta is not None
    return x + link.zeta * gate[:, 1] * u


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("fusion", ["residual", "gated"])
@pytest.mark.parametrize("gates", ["softmax", "sigmoid"])
@pytest.mark.parametrize("attention", ["none", "spatial", "channel", "both"])
def test_a_link_fuses_as_the_formula_says(
    attention: Attention, gates: Gates, fusion: Fusion, upsample: Upsample, padded: bool
) -> None:
    settings: dict[str, Any] = {
        "attention": attention,
        "gates": gates,
        "fusion": fusion,
        "upsample": upsample,
    }
    link = stir(Link(4, seed=0, **settings).double(), seed=3, by=0.5)
    padding = right_half()[0] if padded else None
    valid = (
        torch.ones(2, 1, *GRIDS[0], dtype=torch.float64) if padding is None else (~padding).double()
    )
    x, coarse = drawn(0, 2, 4, *GRIDS[0]) * valid, drawn(1, 2, 4, *GRIDS[1])
    expected = fused_by_formula(link, x, coarse, valid, **settings)
    torch.testing.assert_close(link(x, coarse, padding), expected)


@pytest.mark.parametrize("attention", ["none", "spatial", "channel", "both"])
def test_softmax_gates_are_convex_under_every_attention(attention: Attention) -> None:
    x = drawn(0, 2, 4, 5, 6)
    link = Link(
        4, attention=attention, fusion="gated", gates="softmax", upsample="nearest", seed=0
    ).double()
    torch.testing.assert_close(stir(link, seed=3, by=0.5)(x, x, None), x)


def reviewkd_features(review: ReviewChain, student: list[Tensor]) -> list[Tensor]:
    """ReviewKD's fusion from its formulas (docs/method.md, A.1), coarsest level first."""

    def adapted(adapter: nn.Module, x: Tensor) -> Tensor:
        conv, norm = conv_of(adapter), norm_of(adapter)
        x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

    outputs: list[Tensor] = []
    residual = None
    for level in (3, 2, 1, 0):
        fused = adapted(review.align[NAMES[level]], student[level])
        if residual is not None:
            attention = conv_of(link_of(review, f"{NAMES[level + 1]}->{NAMES[level]}").spatial)
            upsampled = F.interpolate(residual, size=fused.shape[-2:], mode="nearest")
            maps = F.conv2d(
                torch.cat([fused, upsampled], 1), attention.weight, attention.bias
            ).sigmoid()
            fused = fused * maps[:, :1] + upsampled * maps[:, 1:]
        residual = fused
        outputs.insert(0, adapted(review.project[NAMES[level]], fused))
    return outputs


def test_with_the_papers_pieces_and_spatial_attention_it_is_reviewkds_fusion() -> None:
    review = chain(
        attention="spatial",
        fusion="gated",
        gates="sigmoid",
        norm="batch",
        init="kaiming",
        channels=(3, 4),
    )
    # as in ReviewKD, so `reviewkd_features` has read every parameter
    assert conv_of(review.align["P3"]).bias is None
    student = pyramid(channels=3)
    for found, expected in zip(
        review(student, no_padding()), reviewkd_features(review, student), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("links", [s for n in range(4) for s in itertools.combinations(LINKS, n)])
def test_a_level_depends_on_itself_and_on_coarser_levels_reached_by_active_links(
    links: tuple[str, ...],
) -> None:
    review = chain(links=links)
    student = [x.requires_grad_() for x in pyramid()]
    outputs = review(student, no_padding())
    for fine, coarse in itertools.product(range(4), repeat=2):
        (gradient,) = torch.autograd.grad(
            outputs[fine].square().sum(), student[coarse], retain_graph=True, allow_unused=True
        )
        reached = fine <= coarse and all(
            f"{NAMES[level + 1]}->{NAMES[level]}" in links for level in range(fine, coarse)
        )
        assert (gradient is not None and bool((gradient != 0).any())) == reached


@pytest.mark.parametrize("links", [(), ("P5->P4",), tuple(LINKS)])
@pytest.mark.parametrize("attention", ["none", "spatial", "channel", "both"])
def test_residual_chain_of_equal_channels_starts_as_the_identity(
    links: tuple[str, ...], attention: Attention
) -> None:
    student = pyramid()
    for found, x in zip(
        chain(stirred=False, links=links, attention=attention)(student, no_padding()),
        student,
        strict=True,
    ):
        assert torch.equal(found, x)


def test_switching_a_link_off_removes_its_weights_and_shifts_no_others() -> None:
    whole = chain(stirred=False, fusion="gated")
    part = chain(stirred=False, fusion="gated", links=["P5->P4"])
    weights = whole.state_dict()
    for name, weight in part.state_dict().items():
        assert torch.equal(weight, weights[name])
    gone = {name for name in weights if name not in part.state_dict()}
    assert gone == {name for name in weights if name.startswith(("links.P4->P3.", "links.P6->P5."))}


def test_modules_of_different_names_and_seeds_draw_different_weights() -> None:
    first, second = (
        chain(stirred=False, seed=seed, init="kaiming", channels=(4, 6)) for seed in (0, 1)
    )
    drawn_weights = [
        w for c in (first, second) for name, w in c.state_dict().items() if name.endswith("weight")
    ]
    assert all(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in itertools.combinations(drawn_weights, 2)
    )
    again = chain(stirred=False, init="kaiming", channels=(4, 6))
    assert torch.equal(conv_of(first.align["P3"]).weight, conv_of(again.align["P3"]).weight)


def test_building_a_chain_draws_nothing_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    chain(stirred=False, init="kaiming", norm="group")
    assert torch.equal(torch.get_rng_state(), before)


def test_padded_cells_do_not_affect_the_others() -> None:
    review, padding = chain(), right_half()
    student = pyramid()
    other = [x + 1e6 * drawn(9, *x.shape) * mask for x, mask in zip(student, padding, strict=True)]
    for found, expected, mask in zip(
        review(other, padding), review(student, padding), padding, strict=True
    ):
        assert torch.equal(found, expected)
        assert (found[mask.expand_as(found)] == 0).all()


def test_coarse_features_are_scaled_by_the_zeta_of_their_link() -> None:
    review = chain(stirred=False)
    student = pyramid()
    with torch.no_grad():
        review.zetas()["P4->P3"].fill_(2.0)
    fused = review(student, no_padding())[0]
    expected = student[0] + 2 * 0.5 * F.interpolate(student[1], size=GRIDS[0])
    link = link_of(review, "P4->P3")
    for conv in (link.spatial, link.squeeze, link.excite):
        torch.nn.init.zeros_(conv_of(conv).weight)
    torch.testing.assert_close(review(student, no_padding())[0], expected)
    assert not torch.allclose(fused, expected)


@pytest.mark.parametrize("adapter", ["align", "project"])
def test_an_identity_adapter_between_unequal_channels_is_refused(adapter: str) -> None:
    kinds: dict[str, Any] = {"align": "conv1x1", "project": "conv1x1", adapter: "identity"}
    with pytest.raises(
        ConfigError,
        match=rf"distill\.kdr\.{adapter}: identity needs .* got \d+ and \d+ at P3\. Use conv1x1",
    ):
        ReviewChain(
            ["P3", "P4"],
            [8, 8],
            [4, 6],
            links=[],
            seed=0,
            attention="none",
            fusion="gated",
            gates="softmax",
            norm="none",
            init="dirac",
            upsample="nearest",
            **kinds,
        )


def test_identity_adapters_have_no_parameters() -> None:
    assert not list(
        chain(align="identity", project="identity", links=[], norm="batch").parameters()
    )


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_every_norm_works_for_one_image_with_a_level_of_one_cell(norm: AdapterNorm) -> None:
    review = ReviewChain(
        ["P6", "P7"],
        [8, 8],
        [8, 8],
        links=["P7->P6"],
        seed=0,
        attention="both",
        fusion="gated",
        gates="sigmoid",
        align="conv1x1",
        project="conv3x3",
        norm=norm,
        init="kaiming",
        upsample="nearest",
    )
    outputs = review([torch.randn(1, 8, 2, 2), torch.randn(1, 8, 1, 1)], [None, None])
    torch.autograd.backward(summed(output.square().sum() for output in outputs))
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in review.parameters()
    )
