"""Measures time and memory of a training step with each distillation method.

    # on a CPU: resnet18 -> mobilenet_v3_small, FPN of 64 channels, 128 px, batch 16
    python benchmarks/step.py
    python benchmarks/step.py --methods kdr --student resnet18 --clock processor
    # on a GPU: resnet101 -> resnet50, 800 x 1333 px, batch 8, bf16, channels_last
    python benchmarks/step.py --device cuda

Both detectors are RetinaNets. Each method runs at its default settings in `fit()`'s own step: copy
to the device, normalisation, teacher, student, losses, backward, clipping, optimiser. It is
compared with the same step without distillation (`student`) plus the teacher's backbone and FPN
alone (`teacher`). Each round runs all of them, so that a drift of the machine's speed affects all
equally. Ratios are taken within a round; the table has their median and quartiles over the rounds.
Gradient norms, which `fit()` computes once per epoch, are excluded. Masks, review and distance of
KDR are also timed separately, on the features of the same batch.

Memory is the peak of torch's allocated memory during a step, minus the memory before it: from the
profiler's allocation events on a CPU, from `torch.cuda.max_memory_allocated` on a GPU. `extra` is
the difference to a step without distillation while the teacher's features are in memory.

Images and boxes are random, and the teacher has initial weights; neither changes the amount of
computation.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# silences the profiler; read when torch is imported
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import Tensor

from kdr.config.data import SHAPE_CLASSES
from kdr.config.distill import DistillConfig
from kdr.config.study import study_from
from kdr.data.loader import Batch
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import save_student
from kdr.distill.cells import ValidCells
from kdr.distill.distance import masked_pyramid_distances
from kdr.distill.kdr import Kdr
from kdr.distill.masks import background_mask, foreground_mask, padded_boxes
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.training.fit import _step
from kdr.training.loss_sums import LossSums
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import TrainingState, prepare

TARGETS = {"cpu": 1.10, "cuda": 1.08}
"""Upper limits for a step of KDR, in units of student + teacher."""
ON_A_CPU = {
    "size": (128, 128),
    "batch": 16,
    "teacher": "resnet18",
    "student": "mobilenet_v3_small",
    "fpn_channels": 64,
    "rounds": 20,
}
ON_A_GPU = {
    "size": (800, 1333),
    "batch": 8,
    "teacher": "resnet101",
    "student": "resnet50",
    "fpn_channels": 256,
    "rounds": 50,
}
STEP = 10**5  # after the end of every ramp
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def drawn_batch(size: tuple[int, int], count: int) -> Batch:
    """Draws images with seven boxes each, as many as COCO's have.

    If `size` is not square, two in three images are narrower, so that the batch has padding.
    """
    draw = torch.Generator().manual_seed(0)
    height, width = (-(-side // 32) * 32 for side in size)
    square = size[0] == size[1]
    sizes = [
        (size[0], size[1] if square or not number % 3 else int(size[1] * 0.8))
        for number in range(count)
    ]
    # as in the loader: zeros to the right and below, sides padded to a multiple of 32
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    boxes = []
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(256, (3, h, w), generator=draw, dtype=torch.uint8)
        corner, extent = torch.rand(2, 7, 2, generator=draw)
        first = corner * 0.8
        last = (first + 0.04 + extent * 0.4).clamp(max=1)
        boxes.append(torch.cat([first, last], 1) * torch.tensor([w, h, w, h]))
    labels = tuple(torch.randint(len(SHAPE_CLASSES), (7,), generator=draw) for _ in sizes)
    if torch.cuda.is_available():
        images = images.pin_memory()  # as the loader does
    return Batch(images, tuple(sizes), tuple(sizes), tuple(range(count)), tuple(boxes), labels)


def prepared_states(
    arguments: argparse.Namespace, folder: str
) -> dict[str, tuple[Any, TrainingState]]:
    """Returns settings and state of a trial without distillation (`student`) and of each method."""
    on_gpu = arguments.device.startswith("cuda")
    detector = {"detector": "retinanet", "fpn_channels": arguments.fpn_channels}
    weights = Path(folder) / "teacher.pt"
    content: dict[str, Any] = {
        "study": "step",
        "trial": {
            # used only to measure the spread of the teacher's features
            "data": {
                "dataset": "shapes",
                "image_size_px": 128,
                "num_train": 16,
                "num_val": 1,
                "num_classes": len(SHAPE_CLASSES),
            },
            "teacher": {**detector, "backbone": arguments.teacher, "weights": str(weights)},
            "student": {**detector, "backbone": arguments.student},
            "training": (
                {"epochs": STEP, "batch_size": 16, "lr": 1e-5, "schedule": "constant"}
                | ({"precision": "bf16", "channels_last": True} if on_gpu else {})
            ),
        },
    }
    study = study_from(content, folder=Path())
    assert study.base.teacher is not None
    save_student(
        LocalPath(weights),
        build_detector(study.base.teacher.with_changes(weights=None), SHAPE_CLASSES, seed=0),
        extra={},
    )
    storage = Storage.at(folder)
    shared, make = SharedParts(storage), trial_maker(study, storage)
    states = {}
    for name in ("student", *arguments.methods):
        trial = make(study.trial_with({} if name == "student" else {f"distill.{name}": {}}))
        states[name] = trial.config, prepare(trial, shared, torch.device(arguments.device), 0)
        states[name][1].parallel.train()
    return states


class Steps:
    """The timed calls by name: `student`, `teacher`, and a distilled step of each method."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.states = prepared_states(arguments, folder)
        self.batch = drawn_batch(arguments.size, arguments.batch)
        self.device = torch.device(arguments.device)
        _, self.of_method = self.states[arguments.methods[0]]
        assert self.of_method.teacher is not None
        self.teacher = self.of_method.teacher.detector
        self.on_device = self.batch.to(self.device)
        pixels = self.teacher.pixels(self.on_device.images, self.batch.image_sizes)
        self.pixels = pixels.contiguous(memory_format=self.of_method.memory_format)
        self.timed: dict[str, Callable[[], Any]] = {
            name: self.step_of(name) for name in self.states
        } | {"teacher": self.features}

    def step_of(self, name: str) -> Callable[[], Any]:
        """Returns the training step of a method, or of the student alone."""
        config, state = self.states[name]
        sums = LossSums()
        return lambda: _step(config, state, self.batch, STEP, sums, with_norms=False)

    @torch.no_grad()
    def features(self) -> list[Tensor]:
        """Computes the teacher's features."""
        with self.autocast():
            return self.teacher.features(self.pixels)

    def autocast(self) -> torch.autocast:
        """Returns the autocast context of training."""
        precision = self.of_method.precision
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def beside_the_teacher(self) -> None:
        """Runs a step without distillation while the teacher's features are in memory."""
        held = self.features()
        self.timed["student"]()
        del held

    def drop_gradients(self) -> None:
        """Frees the gradients of earlier steps, which would count as memory of the next."""
        for _, state in self.states.values():
            state.optimizer.zero_grad(set_to_none=True)


class KdrParts:
    """The parts of KDR on the features of one batch: forward and, if there is one, backward."""

    def __init__(self, steps: Steps) -> None:
        model = steps.states["kdr"][1].model
        self.kdr, self.steps = cast(Kdr, model.methods["kdr"]), steps
        self.batch_size = (steps.pixels.shape[-2], steps.pixels.shape[-1])
        with torch.no_grad(), steps.autocast():
            features = model.student.features(steps.pixels)
        self.student = [x.detach().requires_grad_() for x in features]
        self.teacher = steps.features()
        with torch.no_grad():
            reviewed = self.reviewed()
        self.inputs = [x.detach().requires_grad_() for x in reviewed]
        self.gradients = [torch.randn_like(x) for x in reviewed]
        self.weights = self.masks()
        self.timed: dict[str, Callable[[], Any]] = {
            "masks": self.masks,
            "review": self.review,
            "distance": self.distance,
        }

    def valid(self) -> ValidCells:
        """Returns the cells that are not padding."""
        return ValidCells(self.steps.batch.image_sizes, self.batch_size, self.steps.device)

    def masks(self) -> list[Tensor]:
        """Computes the region weights of every level."""
        boxes, valid = padded_boxes(self.steps.on_device.boxes), self.valid()
        foregrounds = [
            (foreground_mask(boxes, valid.like(x), self.batch_size), valid.like(x))
            for x in self.teacher
        ]
        return [
            torch.stack([foreground, background_mask(foreground, cells)])
            for foreground, cells in foregrounds
        ]

    def reviewed(self) -> list[Tensor]:
        """Computes the review chain."""
        valid = self.valid()
        with self.steps.autocast():
            padding = [valid.padding_like(x) for x in self.student]
            features: list[Tensor] = self.kdr.review(self.student, padding)
            return features

    def review(self) -> None:
        """Computes the review chain and its gradients."""
        torch.autograd.backward(self.reviewed(), self.gradients)

    def distance(self) -> None:
        """Computes the distances of both regions at every scale, and their gradients."""
        levels = zip(self.inputs, self.teacher, self.weights, strict=True)
        distances = [
            masked_pyramid_distances(s, t, weights, scales=self.kdr.scales)
            for s, t, weights in levels
        ]
        torch.autograd.backward(torch.stack(distances).sum())


def seconds(function: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Returns the seconds of one call on the device."""
    if device.type != "cuda":
        start = clock()
        function()
        return clock() - start
    torch.cuda.synchronize(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    function()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1000


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Returns the peak of torch's allocated memory during a call, minus the memory before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    # each event is an allocation (positive) or a release (negative) of that many bytes
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the first quartile, the median and the third quartile."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def main() -> None:
    """Prints a table of all methods, and one line with KDR's target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda; the other defaults depend on it"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DistillConfig.model_fields),
        choices=list(DistillConfig.model_fields),
        help="methods to run; by default all",
    )
    parser.add_argument("--teacher", help="backbone of the teacher")
    parser.add_argument("--student", help="backbone of the student")
    parser.add_argument("--fpn-channels", type=int, help="channels of both FPNs")
    parser.add_argument(
        "--size", type=int, nargs=2, help="height and width of the images in pixels"
    )
    parser.add_argument("--batch", type=int, help="batch size in images")
    parser.add_argument("--rounds", type=int, help="measured rounds, at least 2")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="wall clock, or processor time of this process for a busy CPU",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    for name, value in (ON_A_GPU if arguments.device.startswith("cuda") else ON_A_CPU).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        report(arguments, Steps(arguments, folder))


def report(arguments: argparse.Namespace, steps: Steps) -> None:
    """Runs the rounds and prints the results."""
    timed = dict(steps.timed)
    kdr = "kdr" in arguments.methods
    if kdr:
        parts = KdrParts(steps)
        timed |= parts.timed
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds + 2):
        # the order alternates, so that a drift of the machine's speed cancels out
        found = {
            name: seconds(timed[name], steps.device, CLOCKS[arguments.clock])
            for name in (timed if number % 2 else reversed(timed))
        }
        rounds += [found] if number >= 2 else []  # the first two choose kernels and fill caches
    memory = {}
    for name, step in (*steps.timed.items(), ("both", steps.beside_the_teacher)):
        steps.drop_gradients()
        memory[name] = peak_bytes(step, steps.device)
    where = (
        torch.cuda.get_device_name()
        if steps.device.type == "cuda"
        else f"CPU, {arguments.threads} thread"
    )
    precision = "bf16, channels_last" if steps.device.type == "cuda" else "fp32"
    print(
        f"RetinaNet {arguments.teacher} -> {arguments.student}, FPN {arguments.fpn_channels}, "
        f"{arguments.size[0]} x {arguments.size[1]} px, batch {arguments.batch}, {precision}, "
        f"{where}"
    )
    print(
        f"{'':<10}{'ms, median':>12}{'images/s':>10}{'step / (student + teacher)':>32}"
        f"{'peak MiB':>10}{'extra MiB':>11}"
    )
    for name in ("student", "teacher", *arguments.methods):
        median = statistics.median(found[name] for found in rounds)
        line = f"{name:<10}{1000 * median:>12.1f}{arguments.batch / median:>10.1f}"
        if name in arguments.methods:
            low, middle, high = quartiles(
                [found[name] / (found["student"] + found["teacher"]) for found in rounds]
            )
            line += f"{f'{middle:.3f} ({low:.3f} to {high:.3f})':>32}"
            line += f"{memory[name] / 2**20:>10.1f}{(memory[name] - memory['both']) / 2**20:>11.1f}"
        else:
            line += f"{'':>32}{memory[name] / 2**20:>10.1f}"
        print(line)
    if kdr:
        shares = {
            part: quartiles([found[part] / found["kdr"] for found in rounds])[1]
            for part in parts.timed
        }
        print(
            "shares of a step of kdr: "
            + ", ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items())
        )
        low, middle, high = quartiles(
            [found["kdr"] / (found["student"] + found["teacher"]) for found in rounds]
        )
        print(
            f"kdr: {middle:.3f} times student + teacher ({low:.3f} to {high:.3f}, {len(rounds)} "
            f"rounds); target: at most {TARGETS[steps.device.type]:.2f}"
        )


if __name__ == "__main__":
    main()
