"""The processes that train one trial together, and what they tell each other besides gradients.

Objects travel over a gloo group of their own, whose timeout is days: ranks that wait for rank 0 to
score an evaluation neither spin a GPU nor give up. Gradients travel over the default group, nccl
between GPUs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from torch import Tensor, nn

Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one trial together; by default it is alone."""

    rank: int = 0
    """Of this process, from 0."""
    count: int = 1
    """Processes that train together."""
    control: Any = None
    """gloo group for objects; None for a process that is alone."""

    @classmethod
    def joined(cls) -> "Ranks":
        """All processes of torch's default group, which has been initialised; called by each of
        them.
        """
        control = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), control)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def gathered(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """What rank 0 computes, on every rank."""
        if self.count == 1:
            return compute()
        box: list[Any] = [compute() if self.is_first else None]
        torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        value: Value = box[0]
        return value

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, whose gradients will be means over the ranks after each backward pass."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def apart(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """Within it gradients add up on each rank alone; the next backward pass outside of it
        averages all that has added up.
        """
        return (
            parallel.no_sync()
            if isinstance(parallel, nn.parallel.DistributedDataParallel)
            else nullcontext()
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers of rank 0: running statistics are taken from each rank's own
        images.
        """
        if self.count > 1:
            for buffer in _unique(model.buffers()):
                torch.distributed.broadcast(buffer, src=0)


ALONE = Ranks()


def _unique(tensors: Any) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
