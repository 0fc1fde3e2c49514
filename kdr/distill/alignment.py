"""Brings the student's feature levels to the channels and cells of the teacher's."""

from collections.abc import Iterator

from torch import Tensor, nn

from kdr.distill.adapters import Adapter, AdapterInit, AdapterKind
from kdr.distill.cells import ToTeachersGrid
from kdr.distill.levels import MatchedLevels
from kdr.distill.method import Outputs
from kdr.errors import ConfigError
from kdr.randomness import address


class AlignedLevels(nn.Module):
    """Aligns each student level with its teacher level: channels by an adapter, cells by resizing.

    Args:
        method: name of the method, for messages and as part of the address of initial weights.
        levels: the levels that learn.
        seed: the trial's seed.
        kind: kind of the adapters.
        init: initial weights of the adapters, see `Adapter`.
        where_channels_differ: adapt only levels whose channels differ from the teacher's, as FGD,
            MGD and CWD do.

    Raises:
        ConfigError: if an identity adapter would have to change the number of channels.
    """

    def __init__(
        self,
        method: str,
        levels: MatchedLevels,
        *,
        seed: int,
        kind: AdapterKind = "conv1x1",
        init: AdapterInit = "kaiming",
        where_channels_differ: bool = False,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.adapters = nn.ModuleDict()
        for name, num_in, num_out in zip(
            levels.names, levels.student_channels, levels.teacher_channels, strict=True
        ):
            if kind == "identity" and num_in != num_out:
                raise ConfigError(
                    f"distill.{method}: without adapters, student and teacher need equal channels, "
                    f"got {num_in} and {num_out} at {name}. Set student.fpn_channels to the "
                    "teacher's, or use a method with adapters, such as cwd"
                )
            its_kind: AdapterKind = (
                "identity" if where_channels_differ and num_in == num_out else kind
            )
            # addressed by name, not index: leaving a level out keeps the others' initial weights
            its_seed = address(seed, method, "align", name)
            self.adapters[name] = Adapter(
                num_in, num_out, kind=its_kind, norm="none", init=init, seed=its_seed
            )
        self._to_teachers_grid = ToTeachersGrid(method)

    def forward(self, student: Outputs, teacher: Outputs) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields (name, aligned student features, teacher features) per level, finest first.

        Both features of a level have the same shape.
        """
        of_student = self.levels.of_student(student.features)
        of_teacher = self.levels.of_teacher(teacher.features)
        for name, features, target in zip(self.levels.names, of_student, of_teacher, strict=True):
            yield name, self._to_teachers_grid(self.adapters[name](features), target, name), target
