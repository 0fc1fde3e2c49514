"""Batches of images and boxes, identical for any number of workers and after a resume.

The samplers yield (epoch, position). The data set therefore has no state, and its worker processes
can stay alive for all epochs.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdr.config.data import CocoData, ShapesData
from kdr.data.coco import CocoIndex
from kdr.data.decoding import decode_rgb
from kdr.data.order import TrainingOrder
from kdr.data.transforms import EvalTransform, TrainTransform
from kdr.errors import ConfigError, TrialFailure

_PAD_MULTIPLE = 32
"""Batches are padded to this multiple in pixels, as in torchvision's GeneralizedRCNNTransform."""
_CACHE_BYTES = 512 * 2**20
"""Memory for decoded images, over all workers; a data set that fits is decoded only once."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N images with their boxes, each in the top left corner of a tensor padded with zeros.

    Args:
        images: (N, 3, H, W) uint8 RGB; H and W are multiples of 32.
        image_sizes: N pairs (height, width) in pixels after resizing, without padding.
        original_sizes: N pairs (height, width) in pixels of the annotation file.
        image_ids: N ids of the annotation file.
        boxes: N tensors (M, 4) float32 xyxy, in pixels of the resized image.
        labels: N tensors (M,) int64, 0..K-1.
    """

    images: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    image_ids: tuple[int, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def every(self, stride: int, first: int) -> "Batch":
        """Returns a view of the images `first`, `first + stride`, ..., with their padding."""
        return Batch(*(getattr(self, field.name)[first::stride] for field in fields(self)))

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device; from pinned memory the copy is asynchronous."""
        # one copy for all boxes, because dozens of small copies would each synchronise
        counts = [len(boxes) for boxes in self.boxes]
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            boxes=torch.split(torch.cat(self.boxes).to(device, non_blocking=True), counts),
            labels=torch.split(torch.cat(self.labels).to(device, non_blocking=True), counts),
        )


class TrainingBatches:
    """Augmented batches in a new order each epoch; each rank gets its share of a global batch.

    Args:
        index: the training images.
        data: resizing, augmentation, grouping by aspect ratio.
        seed: the trial's seed.
        batch_size: images in a global batch, over all ranks. An incomplete last batch is dropped
            unless it is the only one.
        num_workers: loader processes; 0 loads in this process.
        rank: rank of this process.
        num_ranks: processes that train together; each gets `batch_size / num_ranks` images of
            each batch.

    Raises:
        ConfigError: if the batch size is not a multiple of the number of ranks.
    """

    def __init__(
        self,
        index: CocoIndex,
        data: ShapesData | CocoData,
        *,
        seed: int,
        batch_size: int,
        num_workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if min(batch_size, len(index)) % num_ranks:
            raise ConfigError(
                f"training.batch_size: must be a multiple of the number of workers, {num_ranks}, "
                f"got {min(batch_size, len(index))} images (batch_size {batch_size}, {len(index)} "
                "training images). Change batch_size or resources.workers"
            )
        portrait = (
            (index.sizes[:, 0] > index.sizes[:, 1]).tolist() if data.aspect_ratio_grouping else None
        )
        self._order = TrainingOrder(len(index), batch_size, seed, portrait, rank, num_ranks)
        transform = TrainTransform(data.resize, data.augment, seed)
        self._batches = _Batches(
            _Samples(index, transform, num_workers), self._order, data, num_workers
        )

    def __len__(self) -> int:
        """Steps per epoch, the same in every epoch and on every rank."""
        return self._order.num_batches

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yields the batches of one epoch. Epochs can be requested in any order.

        Args:
            number: number of the epoch, as the trial counts epochs.

        Raises:
            TrialFailure: of kind `bad_data`, with file and id, if an image cannot be decoded.
        """
        self._order.epoch = number
        yield from self._batches

    def close(self) -> None:
        """Ends the worker processes; another epoch would start new ones."""
        self._batches.close()


class EvaluationBatches:
    """Batches without augmentation, in the order of the index, including an incomplete last one.

    Iterating raises TrialFailure of kind `bad_data` if an image cannot be decoded.

    Args:
        index: the images.
        data: resizing.
        batch_size: images in a batch.
        num_workers: loader processes; 0 loads in this process.
        rank: rank of this process.
        num_ranks: processes that evaluate together. Each gets whole batches, and each image is in
            exactly one batch of one rank.
    """

    def __init__(
        self,
        index: CocoIndex,
        data: ShapesData | CocoData,
        *,
        batch_size: int,
        num_workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        positions = [(0, position) for position in range(len(index))]
        batches = [
            positions[start : start + batch_size] for start in range(0, len(positions), batch_size)
        ]
        self._order = batches[rank::num_ranks]
        self._batches = _Batches(
            _Samples(index, EvalTransform(data.resize), num_workers),
            self._order,
            data,
            num_workers,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches

    def close(self) -> None:
        """Ends the worker processes; another iteration would start new ones."""
        self._batches.close()


def first_batches(
    index: CocoIndex, data: ShapesData | CocoData, *, count: int, batch_size: int
) -> Iterator[Batch]:
    """Yields up to `count` batches of the first images, without augmentation.

    These batches are the same for every trial.
    """
    first = index.subset(range(min(count * batch_size, len(index))))
    yield from EvaluationBatches(first, data, batch_size=batch_size)


def first_batch_hash(batch: Batch) -> str:
    """Returns a hash of pixels, boxes and labels, 16 hexadecimal digits.

    Paired trials have the same hash for the first batch of each epoch.
    """
    content = hashlib.blake2b(digest_size=8)
    for tensor in (batch.images, *batch.boxes, *batch.labels):
        content.update(str(tuple(tensor.shape)).encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


@dataclass(frozen=True)
class _Loaded:
    """A transformed sample.

    Boxes and labels are numpy arrays, because torch sends each tensor of a worker through its own
    shared memory, which costs a file descriptor.
    """

    image: Tensor
    boxes: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    original_size: tuple[int, int]
    image_id: int


class _Samples(Dataset[_Loaded | TrialFailure]):
    """Decodes and transforms the image at (epoch, position); caches small data sets."""

    def __init__(
        self, index: CocoIndex, transform: TrainTransform | EvalTransform, num_workers: int
    ) -> None:
        self._index, self._transform = index, transform
        decoded_bytes = 3 * int(index.sizes.prod(axis=1).sum())
        # each worker eventually sees every image, so each needs room for all of them
        self._use_cache = decoded_bytes <= _CACHE_BYTES // max(1, num_workers)
        self._cache: dict[int, Tensor] = {}

    def __getitem__(self, address: tuple[int, int]) -> "_Loaded | TrialFailure":
        """Returns the sample at (epoch, position), or the failure to load it.

        A failure is returned, not raised: torch re-raises a worker's exception with the traceback
        as its only argument, which would lose kind and reason.
        """
        epoch, position = address
        index = self._index
        image_id = index.image_ids[position]
        try:
            image = self._image(position)
        except TrialFailure as failure:
            return failure
        boxes = torch.from_numpy(index.boxes[position])
        labels = torch.from_numpy(index.labels[position])
        image, boxes, labels = self._transform(image, boxes, labels, epoch=epoch, image_id=image_id)
        return _Loaded(image, boxes.numpy(), labels.numpy(), _pair(index.sizes[position]), image_id)

    def _image(self, position: int) -> Tensor:
        if position in self._cache:
            return self._cache[position]
        path, size = self._index.paths[position], _pair(self._index.sizes[position])
        name = f"{path}: image {self._index.image_ids[position]}"
        try:
            image = decode_rgb(path, orient=bool(self._index.orient[position]))
        # decoders raise RuntimeError, OSError, SyntaxError and more on damaged files
        except Exception as error:
            raise TrialFailure(
                "bad_data", f"{name}: not a readable image ({type(error).__name__}: {error})"
            ) from error
        if image.shape[-2:] != size:
            raise TrialFailure(
                "bad_data",
                f"{name}: height and width are {tuple(image.shape[-2:])}, expected {size}",
            )
        if self._use_cache:
            self._cache[position] = image
        return image


def _pair(size: np.ndarray[Any, Any]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


class _Batches:
    """Batches that can be iterated repeatedly; their workers run until `close` or a failure."""

    def __init__(
        self, samples: _Samples, order: Any, data: ShapesData | CocoData, num_workers: int
    ) -> None:
        self._samples, self._order, self._num_workers = samples, order, num_workers
        self._square_px = data.resize.square_px if data.resize else None
        self._loader: DataLoader[Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._new_loader()
        failure = None
        for packed in self._loader:
            if isinstance(packed, TrialFailure):
                failure = packed
                break
            yield _unpacked(packed)
        if failure is not None:
            # The traceback would keep the loader alive in a reference cycle. torch (2.14) then
            # waits up to 5 s for each worker when it collects the loader, and a DataLoader cannot
            # be closed by hand (pytorch/pytorch#64766), so the last reference is dropped here.
            self.close()
            raise failure

    def close(self) -> None:
        self._loader = None

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            batch_sampler=self._order,
            collate_fn=partial(_packed, square_px=self._square_px),
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # without it, torch (2.14) draws the workers' seed from the global generator
            generator=torch.Generator(),
        )


def padded_batch(
    images: Sequence[Tensor], *, square_px: int | None
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Returns images in the top left corners of one batch, and their sizes.

    Args:
        images: uint8 (3, H, W) each, of any sizes.
        square_px: smallest side of the batch; None pads to the largest image.

    Returns:
        uint8 (N, 3, H, W), H and W multiples of 32, and N pairs (height, width).
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (
        math.ceil(max(side, square_px or 1) / _PAD_MULTIPLE) * _PAD_MULTIPLE
        for side in map(max, zip(*sizes, strict=True))
    )
    batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    # decoded pixels are channels-last in memory, and numpy copies them to planes twice as fast as
    # torch
    for place, image, (h, w) in zip(batch.numpy(), images, sizes, strict=True):
        place[:, :h, :w] = image.numpy()
    return batch, tuple(sizes)


def _packed(
    samples: Sequence[_Loaded | TrialFailure], *, square_px: int | None
) -> dict[str, Any] | TrialFailure:
    """Collates samples into the fields of a Batch, or returns the first failure among them.

    Runs in the worker: a dict with numpy arrays is cheaper to send than a Batch of small tensors.
    """
    loaded = []
    for sample in samples:
        if isinstance(sample, TrialFailure):
            return sample
        loaded.append(sample)
    images, sizes = padded_batch([sample.image for sample in loaded], square_px=square_px)
    return {
        "images": images,
        "image_sizes": sizes,
        "original_sizes": tuple(sample.original_size for sample in loaded),
        "image_ids": tuple(sample.image_id for sample in loaded),
        "boxes": [sample.boxes for sample in loaded],
        "labels": [sample.labels for sample in loaded],
    }


def _unpacked(packed: dict[str, Any]) -> Batch:
    arrays = {
        name: tuple(torch.from_numpy(array) for array in packed[name])
        for name in ("boxes", "labels")
    }
    return Batch(**(packed | arrays))
