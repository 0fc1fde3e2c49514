"""Measures training speed without distillation: kdr against torchvision's plain loop.

    python benchmarks/throughput.py                        # on a CPU
    # on a GPU, with three more rows:
    python benchmarks/throughput.py --backbone resnet50 --size 800 --batch 16 --images 512

Both sides train the same model class from the same initial weights, with the same optimiser, batch
size and precision, on the same generated images, flipped at random. The plain loop follows
torchvision's own training script: a `DataLoader` over a data set that decodes a file and transforms
it with `transforms.v2`, `model(images, targets)`, the sum of the losses, backward, step.

For a fair comparison the plain loop's model does not resize, since the images have their final
size, and its data set keeps decoded images in memory, as kdr's does. The first epoch of each side
decodes and warms up, and is not counted. The sides alternate epoch by epoch, and ratios are taken
within a round. kdr's rate is the `images_per_s` of its log. It includes the gradient norms of the
last step of an epoch, so short epochs make kdr look slower than it is. On a GPU, the table also has
kdr in bf16, with and without channels_last, and the plain loop under autocast.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from kdr.config.study import study_from
from kdr.data.coco import CocoIndex
from kdr.data.splits import open_splits
from kdr.detectors.build import torchvision_model
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.fit import fit


class Images(Dataset[Any]):
    """A data set as in torchvision's documentation, with decoded images kept in memory."""

    def __init__(self, index: CocoIndex) -> None:
        self._index = index
        self._decoded: dict[int, torch.Tensor] = {}
        self._transform = v2.Compose(
            [v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Any:
        if position not in self._decoded:
            self._decoded[position] = decode_image(
                str(self._index.paths[position]), mode=ImageReadMode.RGB
            )
        image = tv_tensors.Image(self._decoded[position])
        boxes = torch.from_numpy(self._index.boxes[position])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.from_numpy(self._index.labels[position]),
        }
        return self._transform(image, target)


def plain_epochs(
    arguments: argparse.Namespace, trial: Any, index: CocoIndex, *, autocast: bool
) -> Iterator[float]:
    """Yields the plain loop's images per second of each epoch."""
    device = torch.device(arguments.device)
    shift = int(arguments.detector == "faster_rcnn")  # its class 0 is the background
    torch.manual_seed(0)
    model = torchvision_model(trial.config.student, 6, _skip_resize=True).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast)
    loader = DataLoader(
        Images(index),
        batch_size=arguments.batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.loader_workers,
        persistent_workers=arguments.loader_workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )
    while True:
        start, count = time.perf_counter(), 0
        for images, targets in loader:
            images = [image.to(device, non_blocking=True) for image in images]
            targets = [
                {name: value.to(device, non_blocking=True) for name, value in target.items()}
                for target in targets
            ]
            targets = [{**target, "labels": target["labels"] + shift} for target in targets]
            with torch.autocast(device.type, enabled=autocast):
                loss = sum(model(images, targets).values())
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            count += len(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield count / (time.perf_counter() - start)


def main() -> None:
    """Prints images per second of all sides, and their ratio to the plain loop in fp32."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--detector",
        default="retinanet",
        choices=["retinanet", "fcos", "faster_rcnn"],
        help="kind of detector",
    )
    parser.add_argument("--backbone", default="resnet18", help="backbone of the detector")
    parser.add_argument("--fpn-channels", type=int, default=64, help="channels of the FPN")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8, help="batch size in images")
    parser.add_argument("--images", type=int, default=128, help="images per epoch")
    parser.add_argument(
        "--rounds", type=int, default=5, help="measured epochs of each side, at least 2"
    )
    parser.add_argument(
        "--loader-workers", type=int, default=0, help="loader processes of each side"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda; by default cuda if available",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    epochs = arguments.rounds + 1
    content: dict[str, Any] = {
        "study": "throughput",
        "trial": {
            "data": {
                "dataset": "shapes",
                "image_size_px": arguments.size,
                "num_train": arguments.images,
                "num_val": 1,
            },
            "student": {
                "detector": arguments.detector,
                "backbone": arguments.backbone,
                "fpn_channels": arguments.fpn_channels,
            },
            "training": {
                # the last epoch is never reached: it would also save the student
                "epochs": epochs + 1,
                "batch_size": arguments.batch,
                "lr": 1e-4,
                "schedule": "constant",
                "clip_norm": None,
                "eval_every_epochs": epochs + 1,
            },
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        study = study_from(content, folder=Path())
        index = open_splits(study.base.data, storage).train
        make = trial_maker(study, storage)

        def ours(changes: dict[str, Any]) -> Iterator[float]:
            trial = make(study.trial_with(changes))
            device = torch.device(arguments.device)
            for metrics in fit(
                trial, storage=storage, device=device, loader_workers=arguments.loader_workers
            ):
                yield metrics.images_per_s

        base = make(study.base)
        sides = {
            "plain torchvision, fp32": plain_epochs(arguments, base, index, autocast=False),
            "kdr, fp32": ours({}),
        }
        if arguments.device.startswith("cuda"):
            sides["plain torchvision, autocast"] = plain_epochs(
                arguments, base, index, autocast=True
            )
            sides["kdr, bf16"] = ours({"training.precision": "bf16"})
            sides["kdr, bf16, channels_last"] = ours(
                {"training.precision": "bf16", "training.channels_last": True}
            )
        rounds: list[dict[str, float]] = []
        for number in range(epochs):
            # the order alternates, so that a drift of the machine's speed cancels out
            rounds.append(
                {name: next(sides[name]) for name in (sides if number % 2 else reversed(sides))}
            )
    where = (
        torch.cuda.get_device_name()
        if arguments.device.startswith("cuda")
        else f"CPU, {arguments.threads} threads"
    )
    print(
        f"{arguments.detector} {arguments.backbone}, {arguments.size} px, batch {arguments.batch}, "
        f"{where}"
    )
    print(f"{'':<30}{'images/s, median':>18}{'times plain, fp32 (quartiles)':>34}")
    for name in sides:
        median = statistics.median(rates[name] for rates in rounds[1:])
        ratios = [rates[name] / rates["plain torchvision, fp32"] for rates in rounds[1:]]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        print(f"{name:<30}{median:>18.1f}{f'{middle:.2f} ({low:.2f} to {high:.2f})':>34}")


if __name__ == "__main__":
    main()
