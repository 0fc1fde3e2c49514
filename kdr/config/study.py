"""A study: one question in one YAML file. Reading it reports all problems at once."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, PrivateAttr, model_validator

from kdr.config.ablation import Ablation, ablation_problems
from kdr.config.detector import is_weights_enum
from kdr.config.faults import Faults
from kdr.config.overrides import changed, parse_override
from kdr.config.problems import validated
from kdr.config.renamed import present_names
from kdr.config.search import Metric, Search
from kdr.config.settings import Count, NonNegative, Settings
from kdr.config.strict_yaml import read_yaml
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError

_PATH_SETTINGS = (
    "data.train_images",
    "data.train_annotations",
    "data.val_images",
    "data.val_annotations",
    *(
        f"{who}.{what}"
        for who in ("student", "teacher")
        for what in ("weights", "backbone_weights")
    ),
)
LoggerName = Literal["tensorboard", "wandb", "mlflow"]
_log = logging.getLogger(__name__)


class Resources(Settings):
    """Resources of one trial. Only `workers` changes a trial's numbers, so it is part of the
    trial's key.
    """

    workers: Count = 1
    """Processes that train one trial together (data-parallel), each on its share of every batch. 1:
    the trial trains in its own process. More: a gang of Ray Train workers, which is kept running
    between trials."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores per worker."""
    gpus_per_worker: Literal["auto"] | NonNegative = "auto"
    """GPUs per worker. `auto`: 1 if there are GPUs, else 0. With one worker, a fraction below 1
    lets trials share a GPU; otherwise a whole number."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes per worker that load images; 0: the worker loads them itself."""
    max_concurrent: Count | None = None
    """Maximum number of trials to run at a time. Unset: as many as fit."""
    grace_s: NonNegative = 30
    """Seconds that running trials have after SIGTERM to finish their epoch. No new trial starts."""
    max_trials_per_start: Count = 100
    """Trials after which a gang of workers is restarted."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus != "auto" and gpus % 1 and (gpus > 1 or self.workers > 1):
            raise ValueError(
                "gpus_per_worker: must be a whole number if above 1 or with several workers, got "
                f"{gpus:g} for each of {self.workers}. Use a whole number, or workers: 1"
            )
        return self


class Study(Settings):
    """One question, and the trials that answer it."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the study, also of its folder in the log."""
    trial: dict[str, JsonValue]
    """The base trial. Searches and ablations change it; without either, the study is this one
    trial."""
    search: Search | None = None
    """A search over settings of the trial."""
    ablation: Ablation | None = None
    """An ablation: arms to compare, over the same seeds."""
    resources: Resources = Resources()
    """Resources of one trial."""
    faults: Faults = Faults()
    """How lost, hung and repeatedly failing trials are handled."""
    keep_weights: Literal["all", "none"] | Count = 1
    """Trials whose students' weights are kept: n for the n best trials, `all`, or `none`."""
    loggers: tuple[LoggerName, ...] = ()
    """Where to report trials besides the log: `tensorboard`, `wandb`, `mlflow`. Each needs its
    package."""

    _base: TrialConfig = PrivateAttr()

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.search is not None and self.ablation is not None:
            raise ValueError(
                "ablation: must not be set together with search, got both. Make two studies"
            )
        return self

    @property
    def metric(self) -> Metric:
        """The metric that the study maximises or compares."""
        asked = self.search or self.ablation
        return asked.metric if asked else "AP"

    @property
    def base(self) -> TrialConfig:
        """The base trial, validated."""
        return self._base

    def trial_with(self, changes: Mapping[str, Any]) -> TrialConfig:
        """Returns the base trial with some settings changed, by path such as `distill.kdr.weight`.

        Raises:
            ConfigError: if the changed settings are invalid, with one line for each problem.
        """
        return validated(TrialConfig, changed(self.trial, changes), prefix="trial")


def read_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Reads and checks a study file. Logs a warning for each setting given under its old name.

    Args:
        path: the YAML file.
        overrides: `path=value` settings that replace those of the file, as given to `--set`. A path
            that does not start with a setting of the study is relative to `trial`.

    Raises:
        ConfigError: if the study is invalid, with one line for each problem.
    """
    path = Path(path)
    # Renamed before merging, so that `--set` with a new name overrides a file with the old one; and
    # again afterwards, for a whole group given as the value of `--set`.
    in_file = present_names(read_yaml(path))
    given = present_names(dict(_study_path(*parse_override(text)) for text in overrides))
    merged = present_names(changed(in_file.content, given.content))
    for source, names in ((str(path), in_file), ("--set", given), ("--set", merged)):
        for note in names.notes:
            _log.warning("warning: %s: %s. The next release drops the old name", source, note)
    problems = [*in_file.problems, *given.problems, *merged.problems]
    return _checked(merged.content, path.absolute().parent, problems)


def study_from(content: Mapping[str, Any], *, folder: Path) -> Study:
    """Checks a study given as plain values, such as those in a log.

    Args:
        content: the study; settings may use their old names.
        folder: base of the relative paths in it.

    Raises:
        ConfigError: if the study is invalid, with one line for each problem.
    """
    names = present_names(content)
    return _checked(names.content, folder, names.problems)


def _checked(content: dict[str, Any], folder: Path, known_problems: Iterable[str]) -> Study:
    if isinstance(content.get("trial"), dict):
        content["trial"] = _with_absolute_paths(content["trial"], folder)
    if isinstance(content.get("search"), dict):
        content["search"] = _with_absolute_choices(content["search"], folder)
    if isinstance(content.get("ablation"), dict):
        content["ablation"] = _with_absolute_changes(content["ablation"], folder)
    # Each part is checked even if another one is invalid, so that a user sees all problems at once.
    problems = [*known_problems]
    study, base = None, None
    try:
        study = validated(Study, content)
    except ConfigError as error:
        problems += error.problems
    if isinstance(content.get("trial"), dict):
        try:
            base = validated(TrialConfig, content["trial"], prefix="trial")
        except ConfigError as error:
            problems += error.problems
    if study is not None and study.ablation is not None:
        problems += ablation_problems(study.ablation)
    if study is not None and base is not None:
        problems += batch_problems(study.resources.workers, base)
    if problems or study is None or base is None:
        raise ConfigError(problems)
    study._base = base
    return study


def batch_problems(workers: int, config: TrialConfig) -> list[str]:
    """Returns one line for each batch that workers cannot share evenly, and each `micro_batch`
    larger than a worker's share.
    """
    trainings = {"trial.training": config.training}
    if config.teacher is not None and config.teacher.training is not None:
        trainings["trial.teacher.training"] = config.teacher.training
    problems = []
    for path, training in trainings.items():
        size, micro_batch = training.batch_size, training.micro_batch
        if size % workers:
            problems.append(
                f"{path}.batch_size: must be a multiple of resources.workers, {workers}, which "
                f"share every batch, got {size}. Change one of them"
            )
        elif isinstance(micro_batch, int) and micro_batch > size // workers:
            problems.append(
                f"{path}.micro_batch: must be at most the batch of one worker, {size // workers} "
                f"of {size} images, got {micro_batch}. Lower it, or remove it"
            )
    return problems


def study_yaml(study: Study) -> dict[str, Any]:
    """Returns the study as plain values, from which `study_from` returns an equal study."""
    # `exclude_unset`: an exported file has only the settings that the user wrote
    content: dict[str, Any] = json.loads(study.model_dump_json(exclude_unset=True, by_alias=True))
    return content


def _study_path(path: str, value: Any) -> tuple[str, Any]:
    return (path if path.split(".")[0] in Study.model_fields else f"trial.{path}"), value


# Paths are made absolute when a study is read: nodes of a cluster run in other folders, and a study
# in the log is read again without its file.
def _with_absolute_paths(settings: dict[str, Any], folder: Path, above: str = "") -> dict[str, Any]:
    """Returns settings of a trial, by name or by path, with file paths made absolute."""
    return {name: _absolute_at(above + name, value, folder) for name, value in settings.items()}


def _absolute_at(path: str, value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return _with_absolute_paths(value, folder, f"{path}.")
    return _absolute(value, folder) if path in _PATH_SETTINGS else value


def _with_absolute_choices(search: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a search with the file paths among its choices made absolute."""
    changes = {}
    for setting in _PATH_SETTINGS:
        parameter = (search.get("parameters") or {}).get(setting)
        if isinstance(parameter, dict) and isinstance(parameter.get("choice"), list):
            choice = [_absolute(value, folder) for value in parameter["choice"]]
            changes[setting] = {**parameter, "choice": choice}
    return {**search, "parameters": {**search["parameters"], **changes}} if changes else search


def _with_absolute_changes(ablation: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns an ablation with the file paths among its changes made absolute."""

    def absolute(group: Any, depth: int) -> Any:
        if not isinstance(group, dict):
            return group
        if not depth:
            return _with_absolute_paths(group, folder)
        return {name: absolute(value, depth - 1) for name, value in group.items()}

    depths = {"baseline": 0, "arms": 1, "factors": 2}
    return {
        **ablation,
        **{
            name: absolute(ablation[name], depth)
            for name, depth in depths.items()
            if name in ablation
        },
    }


def _absolute(value: Any, folder: Path) -> Any:
    return (
        str(folder / Path(value).expanduser())
        if isinstance(value, str) and not is_weights_enum(value)
        else value
    )
