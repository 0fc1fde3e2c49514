"""A small scene with padding, odd sizes and unequal channels, and KDR built from settings, in
double precision."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdr.config.distill import DistillConfig
from kdr.distill.kdr import Kdr
from kdr.distill.method import FeatureLevels, Outputs, Setup, weighted_sum
from kdr.distill.methods import build_methods


@dataclass(frozen=True)
class Scene:
    """Everything that a method is called with."""

    student: list[Tensor]
    teacher: list[Tensor]
    boxes: list[Tensor]
    image_sizes: list[tuple[int, int]]
    batch_size: tuple[int, int]

    def terms(self, method: nn.Module, step: int = 10**6, share: tuple[int, int] = (0, 1)) -> Any:
        return method(
            Outputs(self.student),
            Outputs(self.teacher),
            boxes=self.boxes,
            image_sizes=self.image_sizes,
            batch_size=self.batch_size,
            step=step,
            share=share,
        )

    def loss(self, method: nn.Module, step: int = 10**6, share: tuple[int, int] = (0, 1)) -> Tensor:
        return weighted_sum(self.terms(method, step, share))

    def of(self, images: Sequence[int]) -> "Scene":
        """The same scene with some images, in any order, also more than once."""
        return replace(
            self,
            student=[x[list(images)] for x in self.student],
            teacher=[x[list(images)] for x in self.teacher],
            boxes=[self.boxes[i] for i in images],
            image_sizes=[self.image_sizes[i] for i in images],
        )

    def learning(self) -> "Scene":
        """The same scene with student features that ask for a gradient."""
        return replace(self, student=[x.detach().clone().requires_grad_() for x in self.student])


def drawn_scene(
    *,
    seed: int = 0,
    channels: tuple[int, int] = (6, 8),
    grids: Sequence[tuple[int, int]] = ((13, 17), (7, 9), (4, 5), (2, 3), (1, 2)),
    teacher_grids: Sequence[tuple[int, int]] | None = None,
    image_sizes: Sequence[tuple[int, int]] = ((100, 136), (71, 136), (100, 50)),
    dtype: torch.dtype = torch.float64,
) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def features(num_channels: int, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
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


def built_method(
    name: str,
    *,
    channels: tuple[int, int] = (6, 8),
    num_levels: int = 5,
    teacher_levels: int | None = None,
    finest: int = 3,
    seed: int = 0,
    stirred: bool = False,
    **settings: Any,
) -> Any:
    """A method as the settings say, at weight 1, over levels from P3 or another. Stirred: no
    parameter at its start."""
    strides = tuple(2.0 ** (finest + level) for level in range(num_levels))
    of_teacher = strides[: teacher_levels or num_levels]
    setup = Setup(
        student=FeatureLevels(strides, (channels[0],) * len(strides)),
        teacher=FeatureLevels(of_teacher, (channels[1],) * len(of_teacher)),
        seed=seed,
        total_steps=1000,
        teacher_std=tuple(0.5 + level for level in range(len(of_teacher))),
    )
    method = build_methods(DistillConfig(**{name: settings}), setup)[name].double()
    return stir(method) if stirred else method


def built_kdr(**settings: Any) -> Kdr:
    """KDR; without `normalisation` nothing is divided by."""
    return built_method("kdr", **{"normalisation": "none", **settings})


def stir(module: nn.Module) -> nn.Module:
    """Moves every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return module


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    return drawn_scene


@pytest.fixture
def make_kdr() -> Callable[..., Kdr]:
    return built_kdr


@pytest.fixture
def make_method() -> Callable[..., Any]:
    return built_method


@pytest.fixture
def coco_grids() -> Callable[[int], list[tuple[int, int]]]:
    """The cells of five levels, from the finest on, in a batch of 800 x 1344 px."""
    return lambda finest: [
        (math.ceil(800 / 2**level), math.ceil(1344 / 2**level))
        for level in range(finest, finest + 5)
    ]
