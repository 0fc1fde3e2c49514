"""Inputs and methods for the tests: a small scene with padding, odd sizes and unequal channels.

Everything is in double precision, so that equations are compared to many digits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdr.config.distill import DistillConfig
from kdr.distill.kdr import Kdr
from kdr.distill.method import FeatureLevels, Method, Outputs, Setup, Term, weighted_sum
from kdr.distill.methods import build_methods
from kdr.distill.review import Link, ReviewChain

AnyMethod = TypeVar("AnyMethod", bound=Method)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
Grid = tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """The arguments of a method."""

    student: list[Tensor]
    teacher: list[Tensor]
    boxes: list[Tensor]
    image_sizes: list[tuple[int, int]]
    batch_size: tuple[int, int]

    def terms(
        self, method: nn.Module, step: int = 10**6, share: tuple[int, int] = (0, 1)
    ) -> list[Term]:
        terms: list[Term] = method(
            Outputs(self.student),
            Outputs(self.teacher),
            boxes=self.boxes,
            image_sizes=self.image_sizes,
            batch_size=self.batch_size,
            step=step,
            share=share,
        )
        return terms

    def loss(self, method: nn.Module, step: int = 10**6, share: tuple[int, int] = (0, 1)) -> Tensor:
        return weighted_sum(self.terms(method, step, share))

    def level_distances(self, kdr: Kdr) -> Tensor:
        return kdr.level_distances(
            self.student,
            self.teacher,
            boxes=self.boxes,
            image_sizes=self.image_sizes,
            batch_size=self.batch_size,
        )

    def of(self, images: Sequence[int]) -> "Scene":
        """The same scene with some of its images, in any order, with repetitions."""
        return replace(
            self,
            student=[x[list(images)] for x in self.student],
            teacher=[x[list(images)] for x in self.teacher],
            boxes=[self.boxes[i] for i in images],
            image_sizes=[self.image_sizes[i] for i in images],
        )

    def learning(self) -> "Scene":
        """The same scene with student features that require a gradient."""
        return replace(self, student=[x.detach().clone().requires_grad_() for x in self.student])


def make_scene(
    *,
    seed: int = 0,
    channels: tuple[int, int] = (6, 8),
    grids: Sequence[Grid] = ((13, 17), (7, 9), (4, 5), (2, 3), (1, 2)),
    teacher_grids: Sequence[Grid] | None = None,
    image_sizes: Sequence[tuple[int, int]] = ((100, 136), (71, 136), (100, 50)),
    dtype: torch.dtype = torch.float64,
) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def features(num_channels: int, sizes: Sequence[Grid]) -> list[Tensor]:
        shapes = [(len(image_sizes), num_channels, *grid) for grid in sizes]
        return [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in shapes
        ]

    boxes = [
        [[10.0, 20.0, 60.0, 70.0], [50.0, 50.0, 135.0, 99.0]],
        [[3.0, 3.0, 3.8, 3.5]],
        [[41.0, 0.0, 50.0, 40.0]],
    ]
    return Scene(
        student=features(channels[0], grids),
        teacher=features(channels[1], teacher_grids or grids),
        boxes=[torch.tensor(boxes[i % 3]) for i in range(len(image_sizes))],
        image_sizes=list(image_sizes),
        batch_size=(100, 136),
    )


def make_method(
    kind: type[AnyMethod],
    *,
    channels: tuple[int, int] = (6, 8),
    num_levels: int = 5,
    teacher_levels: int | None = None,
    finest: int = 3,
    seed: int = 0,
    stirred: bool = False,
    **settings: Any,
) -> AnyMethod:
    """A method built from its settings, at weight 1.

    Args:
        kind: class of the method; its name in lower case is the method's name.
        channels: of student and teacher.
        num_levels: levels of the student.
        teacher_levels: levels of the teacher; by default as many.
        finest: 3 for levels from P3 on.
        seed: the trial's seed.
        stirred: move every parameter away from its initial value.
        settings: of the method.
    """
    strides = tuple(2.0 ** (finest + level) for level in range(num_levels))
    of_teacher = strides[: teacher_levels or num_levels]
    setup = Setup(
        student=FeatureLevels(strides, (channels[0],) * len(strides)),
        teacher=FeatureLevels(of_teacher, (channels[1],) * len(of_teacher)),
        seed=seed,
        total_steps=1000,
        teacher_std=tuple(0.5 + level for level in range(len(of_teacher))),
    )
    name = kind.__name__.lower()
    method = build_methods(DistillConfig(**{name: settings}), setup)[name].double()
    assert isinstance(method, kind)
    return stir(method) if stirred else method


def make_kdr(**settings: Any) -> Kdr:
    """KDR; features are not normalised unless `normalisation` says so."""
    return make_method(Kdr, **{"normalisation": "none", **settings})


def stir(module: AnyModule, *, seed: int = 7, by: float = 0.3) -> AnyModule:
    """Moves every parameter away from its initial value, so that no 0 hides a part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            shift = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(by * shift)
    return module


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal values in double precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def conv_of(module: nn.Module | None) -> nn.Conv2d:
    """A convolution: the module itself, or that of an adapter."""
    conv = module if isinstance(module, nn.Conv2d) else getattr(module, "conv", None)
    assert isinstance(conv, nn.Conv2d)
    return conv


def bias_of(module: nn.Module | None) -> Tensor:
    """The bias of a convolution, or of an adapter's."""
    bias = conv_of(module).bias
    assert bias is not None
    return bias


def link_of(review: ReviewChain, name: str) -> Link:
    link = review.links[name]
    assert isinstance(link, Link)
    return link


def norm_of(adapter: nn.Module) -> nn.BatchNorm2d:
    """The batch norm of an adapter."""
    norm = getattr(adapter, "norm", None)
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def gradient_of(x: Tensor) -> Tensor:
    """The gradient that a backward pass left; fails if there is none."""
    assert x.grad is not None
    return x.grad


def coco_grids(finest: int) -> list[Grid]:
    """Cells of five levels, the finest first, in a batch of 800 x 1344 px."""
    return [
        (math.ceil(800 / 2**level), math.ceil(1344 / 2**level))
        for level in range(finest, finest + 5)
    ]
