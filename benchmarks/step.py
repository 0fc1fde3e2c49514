"""What distilling costs: a training step of every method against the student's step and the
teacher's forward, in one run.

    python benchmarks/step.py                   # on a CPU: resnet18 -> mobilenet_v3_small, FPN of
    64 channels, 128 px, batch 16 python benchmarks/step.py --methods kdr --student resnet18 --clock
    processor python benchmarks/step.py --device cuda     # resnet101 -> resnet50, 800 x 1333 px,
    batch 8, bf16, channels_last

Both detectors are RetinaNets. Timed are `fit()`'s own step (copy to the device, normalisation,
teacher, student, losses, backward, clipping, optimiser) with each method at its default settings;
the same step without distillation, `student`; and backbone and FPN of the teacher alone, `teacher`.
All take turns within a round, so that the machine's drift hits all alike; a ratio is taken within
each round, and its median over the rounds is reported with its quartiles. Gradient norms, which
`fit()` takes once per epoch, are not in it. Masks, review and distance of KDR are also timed alone,
on the features of the same batch.

Memory is the peak of what torch's allocator has out during one step beyond what it has before: on a
CPU by the profiler's allocation events, on a GPU by `torch.cuda.max_memory_allocated`. `extra` is
what a step takes beyond one without distillation during which the teacher's features are held.

Images and boxes are drawn at random, and the teacher has its initial weights: neither changes what
has to be computed.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# read when torch is imported: the profiler's own messages
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import Tensor

from kdr.config.distill import DistillConfig
from kdr.config.study import study_from
from kdr.data.loader import Batch
from kdr.data.shapes import SHAPE_CLASSES
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

BARS = {"cpu": 1.10, "cuda": 1.08}
"""The most that a step of KDR may take, in units of student and teacher."""
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
STEP = 10**5  # far behind the end of every ramp
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def drawn_batch(size: tuple[int, int], count: int) -> Batch:
    """Images of `size` with seven boxes each, as images of COCO have; if it is not square, two in
    three are narrower.
    """
    draw = torch.Generator().manual_seed(0)
    height, width = (-(-side // 32) * 32 for side in size)
    square = size[0] == size[1]
    sizes = [
        (size[0], size[1] if square or not number % 3 else int(size[1] * 0.8))
        for number in range(count)
    ]
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
    """Configuration and state of a trial without distillation, by the name `student`, and of one
    per method.
    """
    on_gpu = arguments.device.startswith("cuda")
    detector = {"detector": "retinanet", "fpn_channels": arguments.fpn_channels}
    weights = Path(folder) / "teacher.pt"
    content: dict[str, Any] = {
        "study": "step",
        "trial": {
            # only the spread of the teacher's features is taken from these
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
    """What is timed, by name: `student`, `teacher`, and a distilled step per method."""

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
        """The training step of a method, or of the student alone."""
        config, state = self.states[name]
        sums = LossSums()
        return lambda: _step(config, state, self.batch, STEP, sums, with_norms=False)

    @torch.no_grad()
    def features(self) -> list[Tensor]:
        """The teacher's features."""
        with self.autocast():
            return self.teacher.features(self.pixels)

    def autocast(self) -> torch.autocast:
        """As in training."""
        precision = self.of_method.precision
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def beside_the_teacher(self) -> None:
        """A step without distillation while the teacher's features are held."""
        held = self.features()
        self.timed["student"]()
        del held

    def forget_gradients(self) -> None:
        """Leaves no gradient of an earlier step."""
        for _, state in self.states.values():
            state.optimizer.zero_grad(set_to_none=True)


class KdrParts:
    """The parts of KDR alone, forward and, where there is one, backward, on the features of one
    batch.
    """

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
        """The cells that see an image."""
        return ValidCells(self.steps.batch.image_sizes, self.batch_size, self.steps.device)

    def masks(self) -> list[Tensor]:
        """Region weights of every level."""
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
        """The review chain."""
        valid = self.valid()
        with self.steps.autocast():
            return self.kdr.review(self.student, [valid.padding_like(x) for x in self.student])

    def review(self) -> None:
        """The review chain and its gradients."""
        torch.autograd.backward(self.reviewed(), self.gradients)

    def distance(self) -> None:
        """Distances of both regions at every scale, and their gradients."""
        levels = zip(self.inputs, self.teacher, self.weights, strict=True)
        distances = [
            masked_pyramid_distances(s, t, weights, scales=self.kdr.scales)
            for s, t, weights in levels
        ]
        torch.autograd.backward(torch.stack(distances).sum())


def seconds(function: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """How long one call takes, on the device."""
    if device.type != "cuda":
        begin = clock()
        function()
        return clock() - begin
    torch.cuda.synchronize(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    function()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most that torch's allocator has out during a call, beyond what it has out before."""
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
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def main() -> None:
    """Times everything in turns and prints a table and one line on the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; decides the defaults below")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DistillConfig.model_fields),
        choices=list(DistillConfig.model_fields),
    )
    parser.add_argument("--teacher", help="backbone of the teacher")
    parser.add_argument("--student", help="backbone of the student")
    parser.add_argument("--fpn-channels", type=int)
    parser.add_argument(
        "--size", type=int, nargs=2, help="height and width of the images in pixels"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, help="counted rounds")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="processor: this process's own time, on a busy CPU",
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
    """Runs the rounds and prints what they gave."""
    timed = dict(steps.timed)
    kdr = "kdr" in arguments.methods
    if kdr:
        parts = KdrParts(steps)
        timed |= parts.timed
    rounds = []
    for number in range(arguments.rounds + 2):
        # each goes first in every other round
        found = {
            name: seconds(timed[name], steps.device, CLOCKS[arguments.clock])
            for name in (timed if number % 2 else reversed(timed))
        }
        rounds += [found] if number >= 2 else []  # the first ones choose kernels and fill caches
    memory = {}
    for name, step in (*steps.timed.items(), ("both", steps.beside_the_teacher)):
        steps.forget_gradients()
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
            "of a step of kdr, alone: "
            + ", ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items())
        )
        low, middle, high = quartiles(
            [found["kdr"] / (found["student"] + found["teacher"]) for found in rounds]
        )
        print(
            f"kdr: {middle:.3f} times student + teacher ({low:.3f} to {high:.3f}, {len(rounds)} "
            f"rounds); wanted: at most {BARS[steps.device.type]:.2f}"
        )


if __name__ == "__main__":
    main()
