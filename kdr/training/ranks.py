"""The processes that train one trial together, and the values they exchange.

Objects travel over a separate gloo group with a timeout of days: ranks that wait for rank 0 to
score an evaluation neither spin on a GPU nor time out. Gradients travel over the default group,
nccl between GPUs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from torch import Tensor, nn

Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)  # longer than any evaluation; lost processes are noticed elsewhere


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one trial together; a single process by default."""

    rank: int = 0
    """Rank of this process, from 0."""
    count: int = 1
    """Number of processes."""
    control: Any = None
    """gloo group for objects; None for a single process."""

    @classmethod
    def joined(cls) -> "Ranks":
        """Returns this process among all of torch's default group.

        The group must be initialised; each of its processes must call this.
        """
        control = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), control)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def gathered(self, value: Value) -> list[Value]:
        """Returns the values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """Returns rank 0's result of `compute`, on every rank."""
        if self.count == 1:
            return compute()
        # a list of one: torch fills it in place
        box: list[Any] = [compute() if self.is_first else None]
        torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        value: Value = box[0]
        return value

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns the model in a wrapper that averages gradients over ranks in each backward
        pass.
        """
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def unsynchronised(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """Returns a context in which gradients add up on each rank alone.

        The next backward pass outside of it averages the sums.
        """
        return (
            parallel.no_sync()
            if isinstance(parallel, nn.parallel.DistributedDataParallel)
            else nullcontext()
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Overwrites every rank's buffers with those of rank 0.

        Each rank takes running statistics from its own images, so they differ until then.
        """
        # over the default group: buffers are on the device, where gloo would copy them to the host
        if self.count > 1:
            for buffer in _unique(model.buffers()):
                torch.distributed.broadcast(buffer, src=0)


ALONE = Ranks()


def _unique(tensors: Any) -> list[Tensor]:
    """Returns the tensors without repetitions: modules that are used twice list theirs twice."""
    return list({id(tensor): tensor for tensor in tensors}.values())
