"""The contract of every registered method, on the levels of every detector."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kdr.config.detector import ANCHORS_PER_CELL, FEATURE_STRIDES, level_names
from kdr.config.distill import DistillConfig
from kdr.config.problems import validated
from kdr.config.trial import TrialConfig
from kdr.distill.method import FeatureLevels, Method, Outputs, Setup, Term, weighted_sum
from kdr.distill.methods import build_methods
from kdr.errors import ConfigError

NUM_CLASSES = 3
METHODS = tuple(DistillConfig.model_fields)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | {
    "kdr-paper": ("kdr", {"preset": "kdr-paper"})
}
"""Name of a variant -> method and settings."""
Pair = tuple[str, int, str, int]
PAIRS: dict[str, Pair] = {
    "retinanet": ("retinanet", 32, "retinanet", 32),
    "fcos": ("fcos", 32, "fcos", 32),
    "faster_rcnn": ("faster_rcnn", 32, "faster_rcnn", 32),
    "unequal channels": ("retinanet", 32, "retinanet", 64),
    "unequal levels": ("retinanet", 32, "faster_rcnn", 32),
    "unequal anchors": ("fcos", 32, "retinanet", 32),
}
"""Student, its channels, teacher, its channels."""


@dataclass(frozen=True)
class Case:
    """A method built for a pair of detectors, and how to call it."""

    method: Method
    pair: Pair
    levels: tuple[str, ...]
    """Names of the student's levels that must learn."""

    def scene(
        self,
        *,
        image_sizes: Sequence[tuple[int, int]] = ((160, 129), (96, 256)),
        boxes: bool = True,
        seed: int = 0,
    ) -> "Scene":
        student, student_channels, teacher, teacher_channels = self.pair
        draw = torch.Generator().manual_seed(seed)
        H, W = (-(-max(sides) // 32) * 32 for sides in zip(*image_sizes, strict=True))

        def outputs(detector: str, num_channels: int) -> Outputs:
            grids = [(-(-H // stride), -(-W // stride)) for stride in FEATURE_STRIDES[detector]]
            features = [
                torch.randn(len(image_sizes), num_channels, *grid, generator=draw) for grid in grids
            ]
            if (num_anchors := ANCHORS_PER_CELL.get(detector)) is None:
                return Outputs(features)
            shape = (len(image_sizes), num_anchors, NUM_CLASSES)
            return Outputs(features, [torch.randn(*shape, *grid, generator=draw) for grid in grids])

        of_images = [
            torch.tensor([[3.0, 5.0, 40.0, 50.0], [20.0, 30.0, 60.0, 61.0], [1.0, 2.0, 1.5, 2.5]]),
            torch.zeros(0, 4),
        ]
        return Scene(
            outputs(student, student_channels),
            outputs(teacher, teacher_channels),
            [of_images[i % 2] if boxes else torch.zeros(0, 4) for i in range(len(image_sizes))],
            list(image_sizes),
            (H, W),
        )


@dataclass(frozen=True)
class Scene:
    """The arguments of a method."""

    student: Outputs
    teacher: Outputs
    boxes: list[Tensor]
    image_sizes: list[tuple[int, int]]
    batch_size: tuple[int, int]

    def terms(self, method: torch.nn.Module, step: int = 7) -> list[Term]:
        found: list[Term] = method(
            self.student,
            self.teacher,
            boxes=self.boxes,
            image_sizes=self.image_sizes,
            batch_size=self.batch_size,
            step=step,
        )
        return found

    def loss(self, method: torch.nn.Module, step: int = 7) -> Tensor:
        return weighted_sum(self.terms(method, step))

    def mapped(self, change: Any) -> "Scene":
        """The same scene with every tensor of student and teacher changed."""
        student, teacher = (
            Outputs(
                [change(x) for x in of.features],
                of.class_logits and [change(x) for x in of.class_logits],
            )
            for of in (self.student, self.teacher)
        )
        return replace(self, student=student, teacher=teacher)

    def learning(self) -> "Scene":
        """The same scene with tensors that require a gradient; the teacher's must get none."""
        return self.mapped(lambda x: x.detach().clone().requires_grad_())


def settings_of(variant: str, pair: Pair) -> DistillConfig:
    """The settings as a trial resolves them. Raises ConfigError if the pair cannot be distilled."""
    name, settings = VARIANTS[variant]
    student, student_channels, teacher, teacher_channels = pair
    content = {
        "data": {"dataset": "shapes"},
        "student": {"detector": student, "fpn_channels": student_channels},
        "teacher": {
            "detector": teacher,
            "fpn_channels": teacher_channels,
            "weights": "teacher.pt",
        },
        "distill": {name: settings},
    }
    return validated(TrialConfig, content).distill


def built(variant: str, pair: Pair, *, seed: int = 0) -> Case:
    name, _ = VARIANTS[variant]
    settings = settings_of(variant, pair)
    student, student_channels, teacher, teacher_channels = pair
    of_student, of_teacher = (
        FeatureLevels(FEATURE_STRIDES[detector], (channels,) * 5)
        for detector, channels in ((student, student_channels), (teacher, teacher_channels))
    )
    setup = Setup(
        of_student, of_teacher, seed=seed, total_steps=1000, teacher_std=(1.0, 1.1, 1.2, 1.3, 1.4)
    )
    wanted = getattr(settings.methods()[name], "levels", None) or level_names(student)
    levels = tuple(
        level for level in level_names(student) if level in wanted and level in level_names(teacher)
    )
    method = build_methods(settings, setup)[name]
    assert isinstance(method, Method)
    return Case(method, pair, levels)


def of_pairs(*, accepted: bool) -> list[Any]:
    """Every variant on every pair that it can distil, or cannot."""
    found = []
    for variant, (name, pair) in itertools.product(VARIANTS, PAIRS.items()):
        try:
            settings_of(variant, pair)
        except ConfigError:
            fits = False
        else:
            fits = True
        if fits is accepted:
            # slow all together, not each
            marks = [] if name == "retinanet" else [pytest.mark.slow]
            found.append(pytest.param(variant, pair, id=f"{variant}-{name}", marks=marks))
    return found


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return built(*request.param)


on_every_pair = pytest.mark.parametrize(
    "case",
    [pytest.param(p.values, id=p.id, marks=p.marks) for p in of_pairs(accepted=True)],
    indirect=True,
)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def usual(variant: str) -> Case:
    """The method with RetinaNet as student and teacher."""
    return built(variant, PAIRS["retinanet"])


# --- which pairs ---


def test_every_method_distils_detectors_of_one_kind_with_equal_channels(variant: str) -> None:
    assert built(variant, PAIRS["retinanet"]).method.training


@pytest.mark.parametrize(("variant", "pair"), of_pairs(accepted=False))
def test_a_pair_that_a_method_cannot_distil_is_an_error_that_names_a_setting(
    variant: str, pair: Pair
) -> None:
    with pytest.raises(ConfigError, match=rf"^distill\.{VARIANTS[variant][0]}.*, got .*\. .+"):
        settings_of(variant, pair)


# --- losses and gradients ---


def check_gradients(case: Case, scene: Scene, loss: Tensor, *, everywhere: bool = True) -> None:
    """Checks that parameters and learning levels have finite gradients, and the teacher none.

    With `everywhere`, each level's gradient must also be non-zero.
    """
    torch.autograd.backward(loss)
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(
        x.grad is None for x in (*scene.teacher.features, *(scene.teacher.class_logits or ()))
    )
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in case.method.parameters()
    )
    gradients = {
        name: x.grad
        for name, x in zip(level_names(case.pair[0]), scene.student.features, strict=True)
    }
    found = {
        name: gradient
        for name, gradient in gradients.items()
        if gradient is not None and gradient.any()
    }
    assert set(found) == set(case.levels) if everywhere else set(found) <= set(case.levels)
    assert all(gradient.isfinite().all() for gradient in found.values())


@on_every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_finite_and_reaches_every_level_that_learns_and_never_the_teacher(
    case: Case, dtype: torch.dtype
) -> None:
    scene = case.scene().mapped(lambda x: x.to(dtype)).learning()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = scene.loss(case.method)
    check_gradients(case, scene, loss)


@pytest.mark.parametrize(
    ("image_sizes", "boxes"),
    [
        pytest.param([(160, 129), (96, 256)], False, id="no boxes"),
        pytest.param([(192, 131)], True, id="one portrait image of odd width"),
        pytest.param([(33, 255), (193, 31), (1, 1)], True, id="odd sizes"),
        pytest.param([(32, 32)], True, id="one image with levels of one cell"),
    ],
)
def test_every_batch_has_a_finite_loss(
    usual: Case, image_sizes: list[tuple[int, int]], boxes: bool
) -> None:
    scene = usual.scene(image_sizes=image_sizes, boxes=boxes).learning()
    # a softmax over one cell has no gradient, nor has a cell that MGD masks
    check_gradients(usual, scene, scene.loss(usual.method), everywhere=False)


def test_equal_features_and_logits_have_a_finite_gradient(usual: Case) -> None:
    # where a square root or a division by the difference would give NaN
    scene = usual.scene().learning()
    same = replace(scene, teacher=scene.mapped(torch.detach).student)
    torch.autograd.backward(same.loss(usual.method))
    assert all(x.grad is None or x.grad.isfinite().all() for x in scene.student.features)


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in torch's __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_finds_no_unused_parameter(usual: Case) -> None:
    # DDP refuses to wrap a module without parameters
    has_parameters = any(True for _ in usual.method.parameters())
    parallel = (
        torch.nn.parallel.DistributedDataParallel(usual.method) if has_parameters else usual.method
    )
    # DDP raises in the second step if a parameter got no gradient in the first
    for scene in (usual.scene(), usual.scene(boxes=False)):
        torch.autograd.backward(scene.learning().loss(parallel))


# --- the log ---


def test_terms_have_the_same_names_in_every_step_and_are_scalars_of_the_method(
    usual: Case, variant: str
) -> None:
    scenes = (usual.scene(), usual.scene(boxes=False), usual.scene(image_sizes=[(32, 32)]))
    of_steps = [
        scene.terms(usual.method, step) for scene, step in zip(scenes, (0, 7, 999), strict=True)
    ]
    names = [[term.name for term in terms] for terms in of_steps]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == len(names[0]) > 0
    assert all(name.startswith(f"{VARIANTS[variant][0]}.") for name in names[0])
    assert all(
        term.value.shape == () and isinstance(term.coefficient, float)
        for terms in of_steps
        for term in terms
    )


@on_every_pair
def test_units_are_those_of_terms_and_levels_that_learn(case: Case) -> None:
    scene = case.scene()
    grids = [(x.shape[-2], x.shape[-1]) for x in scene.teacher.features]
    units = case.method.units(grids, boxes_per_image=2.0)
    known = {f"{term.name}.{level}" for term in scene.terms(case.method) for level in case.levels}
    assert units.keys() <= known
    assert all(unit > 0 for unit in units.values())


# --- reproducibility ---


def test_building_and_calling_draw_nothing_from_torchs_own_generator(variant: str) -> None:
    before = torch.get_rng_state()
    case = built(variant, PAIRS["retinanet"])
    case.scene().loss(case.method)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_decides_the_loss_of_a_step_and_the_initial_weights(variant: str) -> None:
    first, again, other = (built(variant, PAIRS["retinanet"], seed=seed) for seed in (0, 0, 1))
    scene = first.scene()
    assert torch.equal(scene.loss(first.method), scene.loss(again.method))
    drawn, others = (
        [p for p in case.method.parameters() if p.ndim > 1 and p.any()] for case in (first, other)
    )
    # `dirac` and constant initial weights are not drawn
    different = [not torch.equal(one, another) for one, another in zip(drawn, others, strict=True)]
    assert any(different) or not drawn


def test_a_restored_state_gives_the_same_loss(usual: Case, variant: str) -> None:
    scene = usual.scene()
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        for parameter in usual.method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    scene.loss(usual.method)  # moves running statistics
    restored = built(variant, PAIRS["retinanet"]).method
    restored.load_state_dict(usual.method.state_dict())
    for step in (7, 8):
        assert torch.equal(scene.loss(restored, step), scene.loss(usual.method, step))


@on_every_pair
def test_the_inputs_are_not_modified(case: Case) -> None:
    scene, untouched = case.scene(), case.scene()
    scene.loss(case.method)
    for found, expected in zip(
        (*scene.student, *scene.teacher), (*untouched.student, *untouched.teacher), strict=True
    ):
        assert (found is None) == (expected is None)
        assert all(torch.equal(*both) for both in zip(found or (), expected or (), strict=True))


def test_padding_counts_only_if_the_method_says_so(usual: Case) -> None:
    clean = usual.scene()

    def dirtied(x: Tensor) -> Tensor:
        x = x.clone()
        for image, size in enumerate(clean.image_sizes):
            rows, columns = (
                -(-extent * cells // pixels)
                for extent, cells, pixels in zip(size, x.shape[-2:], clean.batch_size, strict=True)
            )
            x[image, ..., rows:, :] += 3.0
            x[image, ..., columns:] -= 3.0
        return x

    found = [scene.loss(usual.method) for scene in (clean, clean.mapped(dirtied))]
    assert torch.equal(*found) is not usual.method.counts_padding


# --- speed ---


def test_a_step_never_waits_for_the_device(usual: Case) -> None:
    # a fake tensor has no values: reading one on the host raises
    method = usual.method
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        scene = usual.scene()
        scene = replace(scene, boxes=[mode.from_tensor(x) for x in scene.boxes]).learning()
        loss = scene.loss(method)
        torch.autograd.backward(loss)
        with pytest.raises(DataDependentOutputException):
            float(loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_gives_the_same_loss_without_synchronising(usual: Case) -> None:
    scene = usual.scene().mapped(Tensor.double)
    expected = scene.loss(usual.method.double())
    scene = replace(scene.mapped(Tensor.cuda), boxes=[x.cuda() for x in scene.boxes]).learning()
    usual.method.cuda()
    scene.loss(usual.method)  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = scene.loss(usual.method)
        torch.autograd.backward(found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.detach().cpu(), expected.detach())
