"""`evaluate`: COCO metrics of a trained student, and pictures of its predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdr.cli.options import DEFAULT_STORAGE, JsonOption, SetOption, StorageOption

if TYPE_CHECKING:
    from kdr.config.data import CocoData, ShapesData
    from kdr.storage.files import StoredPath
    from kdr.storage.layout import Storage


def command(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A student.pt, or the key of a trial whose weights were kept.",
            show_default=False,
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Study file with the data to evaluate on; by default the trial's own.",
            show_default=False,
        ),
    ] = None,
    set_: SetOption = None,
    split: Annotated[
        Literal["evaluation", "training"], typer.Option("--split", help="Images to evaluate on.")
    ] = "evaluation",
    show: Annotated[
        Path | None,
        typer.Option(
            "--show",
            help="Folder for pictures: predictions beside the ground truth.",
            show_default=False,
        ),
    ] = None,
    num_shown: Annotated[int, typer.Option("--num-shown", min=1, help="Number of pictures.")] = 16,
    min_score: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Lowest score to draw.")
    ] = 0.3,
    json_: JsonOption = False,
) -> None:
    """Measure a trained student: COCO metrics and AP per class.

    For example:

    kdr evaluate runs/trials/KEY/student.pt --show pictures

    kdr evaluate KEY --data search_spaces/quickstart.yaml --set data.search_split=0
    """
    import torch

    from kdr.cli.output import plain_table, warn
    from kdr.data.loader import EvaluationBatches
    from kdr.data.splits import open_splits
    from kdr.detectors.checkpoint_files import open_student
    from kdr.report.formatting import json_text
    from kdr.storage.layout import Storage
    from kdr.storage.local_path import LocalPath
    from kdr.training.evaluation import evaluate
    from kdr.training.metrics import COCO_METRICS
    from kdr.training.pictures import write_pictures

    place = Storage.at(storage)
    path = _weights(checkpoint, place)
    # from an object store, the weights and the settings beside them are copied here first
    with path.fetched(path.with_suffix(".json").name) as local:
        student, settings = open_student(local), _data(local, data, set_ or (), place)
    splits = open_splits(settings, place)
    index = splits.evaluation if split == "evaluation" else splits.train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = student.to(device)
    # before minutes of evaluation that would be meaningless
    _check_classes(path, student.categories, splits.categories)
    batches = EvaluationBatches(index, settings, batch_size=8)
    found = evaluate(student, batches, index, precision=torch.float32)
    metrics = {name: found.metrics.get(name) for name in COCO_METRICS}
    if json_:
        print(
            json_text(
                {
                    "weights": str(path),
                    "images": len(index.image_ids),
                    **metrics,
                    "per_class": found.ap_per_class,
                }
            )
        )
    else:
        print(f"{path}\n{index.summary()}")
        for name, values in (("metric", metrics), ("class AP", found.ap_per_class)):
            print(
                plain_table(
                    [name, "value"],
                    [
                        [key, "-" if value is None else f"{value:.4f}"]
                        for key, value in values.items()
                    ],
                )
            )
    if show is not None:
        num = write_pictures(
            LocalPath(show), student, batches, num_pictures=num_shown, min_score=min_score
        )
        warn([f"{num} pictures in {show}"])  # not to standard output, which may be JSON


def _weights(checkpoint: str, storage: "Storage") -> "StoredPath":
    """Returns the weights file given by a path or by a trial's key."""
    from kdr.errors import WeightsError
    from kdr.storage.local_path import LocalPath

    path: StoredPath = LocalPath(checkpoint)
    # a name without a folder may be a key
    if not path.is_file() and path.name == checkpoint:
        path = storage.trial(checkpoint) / "student.pt"
    if not path.is_file():
        raise WeightsError(
            f"CHECKPOINT: must be a file, or the key of a trial in {storage.root} whose weights "
            f"were kept, got {checkpoint}. `kdr best` shows one; keep_weights keeps more"
        )
    return path


def _check_classes(weights: "StoredPath", student: Sequence[str], data: Sequence[str]) -> None:
    """Refuses data whose classes differ from the student's, also in order: a label is a position in
    this list.
    """
    from kdr.errors import ConfigError

    if tuple(student) != tuple(data):
        raise ConfigError(
            f"--data: must have the classes of {weights} ({', '.join(student)}), got "
            f"{', '.join(data)}. Evaluate on data with the classes it was trained on"
        )


def _data(
    weights: Path, study: Path | None, overrides: Sequence[str], storage: "Storage"
) -> "ShapesData | CocoData":
    """Returns the data settings of a study file, or of the trial that trained the weights."""
    from kdr.config.study import read_study
    from kdr.config.trial import TrialConfig
    from kdr.detectors.sidecar import read_sidecar
    from kdr.errors import ConfigError
    from kdr.results.reader import read_log

    if study is not None:
        return read_study(study, overrides).base.data
    key = read_sidecar(weights).extra.get("trial")
    state = read_log(storage).states().get(str(key))
    if state is None:
        raise ConfigError(
            f"--data: required, because trial {key} of {weights} is not in the log of "
            f"{storage.root}. Name a study file with the data"
        )
    return TrialConfig.model_validate_json(state.config).data
