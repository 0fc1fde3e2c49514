"""Data sets and teachers that trials share: opened once per process, not once per trial."""

import json
import logging
from dataclasses import dataclass, field

import torch

from kdr.config.data import CocoData, ShapesData
from kdr.config.trial import Trial
from kdr.data.labels import match_labels
from kdr.data.loader import first_batches
from kdr.data.splits import Splits, open_splits
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import open_student
from kdr.detectors.detector import Detector
from kdr.detectors.weights import load_configured_weights
from kdr.distill.statistics import LevelStd
from kdr.errors import WeightsError
from kdr.randomness import address
from kdr.storage.layout import Storage

_log = logging.getLogger(__name__)

STATISTICS_BATCHES = 50
"""Batches over which the statistics of the teacher's features are taken."""
STATISTICS_BATCH_SIZE = 8
"""Images in each of these batches."""


@dataclass
class SharedParts:
    """The open data sets and teachers by identity, one instance per process.

    It holds nothing that a trial changes, so the order of trials does not matter.

    Args:
        storage: holds generated data, trained teachers and their statistics.
        lasting: whether statistics are measured in full and stored; otherwise over a few images,
            for this process alone.
    """

    storage: Storage
    lasting: bool = True
    _splits: dict[str, Splits] = field(default_factory=dict)
    _teachers: dict[str, Detector] = field(default_factory=dict)
    _teacher_lines: dict[str, list[str]] = field(default_factory=dict)

    def splits(self, data: ShapesData | CocoData) -> Splits:
        """Returns the images of a trial; opens and checks them on the first call."""
        name = data.model_dump_json()
        if name not in self._splits:
            # one data set at a time, which bounds memory over a long study
            self._splits = {name: open_splits(data, self.storage)}
        return self._splits[name]

    def teacher(self, trial: Trial, device: torch.device) -> Detector:
        """Returns the frozen teacher of a trial: in evaluation mode, without gradients.

        Raises:
            WeightsError: if its weights are missing or do not fit, if its categories do not match
                the data's, or if a method needs its class logits and its head is not loaded.
        """
        assert trial.teacher_id is not None
        if trial.teacher_id not in self._teachers:
            # one teacher at a time: each occupies GPU memory
            self._teachers = {trial.teacher_id: self._open_teacher(trial)}
        teacher = self._teachers[trial.teacher_id]
        if teacher.unloaded_head and "teacher_logits" in trial.config.distill.needs():
            raise WeightsError(
                "trial.teacher.weights: a method that learns from class logits needs the "
                f"teacher's whole head, got a file that left {len(teacher.unloaded_head)} of its "
                f"keys unfilled, such as {min(teacher.unloaded_head)}. Use a method that compares "
                "features only, or weights that name their classes"
            )
        return teacher.to(device)

    def teacher_lines(self, trial: Trial) -> list[str]:
        """Returns the weights loaded into the teacher of a trial, one line per source.

        The teacher must have been opened by `teacher`.
        """
        return self._teacher_lines[trial.teacher_id or ""]

    def teacher_level_std(self, trial: Trial, device: torch.device) -> list[float]:
        """Returns the standard deviation of each teacher level, measured once per data set."""
        data = trial.config.data
        resize = "" if data.resize is None else data.resize.model_dump_json()
        # the file is named by everything that changes the values
        name = f"level-std-{trial.data_id}-{address(0, resize, str(data.search_split)):x}.json"
        path = self.storage.teacher(trial.teacher_id or "") / name
        if not path.exists():
            num_batches = STATISTICS_BATCHES if self.lasting else 1
            values = _measured_level_std(
                self.teacher(trial, device), self.splits(data), data, device, num_batches
            )
            if not self.lasting:
                return values
            with path.written_aside() as aside:
                aside.write_text(json.dumps({"level_std": values}))
        found: list[float] = json.loads(path.read_text())["level_std"]
        return found

    def _open_teacher(self, trial: Trial) -> Detector:
        config = trial.config.teacher
        assert config is not None
        categories = self.splits(trial.config.data).categories
        if trial.trained_teacher_key is not None:
            path = self.storage.trial(trial.trained_teacher_key) / "student.pt"
            if not path.exists():
                raise WeightsError(
                    f"trial.teacher: its training left no weights at {path}. Run the study again "
                    "to train it"
                )
            with path.fetched("student.json") as local:
                teacher = open_student(local)
            # a student is restored in full or refused
            lines = [f"all keys of the student.pt of trial {trial.trained_teacher_key}"]
        else:
            # any seed will do: all weights are loaded, and methods refuse a head that is not fully
            # loaded
            teacher = build_detector(config, categories, seed=0)
            lines = [report.line() for report in load_configured_weights(teacher)]
            for line in lines:
                _log.info("teacher: %s", line)
        match_labels(teacher.categories, categories, config.labels)
        self._teacher_lines = {trial.teacher_id or "": lines}
        return teacher.eval().requires_grad_(False)


@torch.no_grad()
def _measured_level_std(
    teacher: Detector,
    splits: Splits,
    data: ShapesData | CocoData,
    device: torch.device,
    num_batches: int,
) -> list[float]:
    statistics = LevelStd()
    for batch in first_batches(
        splits.train, data, count=num_batches, batch_size=STATISTICS_BATCH_SIZE
    ):
        pixels = teacher.pixels(batch.to(device).images, batch.image_sizes)
        statistics.update(
            teacher.features(pixels), batch.image_sizes, (pixels.shape[-2], pixels.shape[-1])
        )
    return statistics.result()
