"""What a node of a cluster says of itself before a study starts there. Runs on that node;
`kdr.run.cluster.node_findings` judges it.
"""

import contextlib
import hashlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import kdr
from kdr.config.data import DataConfig
from kdr.data.fingerprint import data_fingerprint
from kdr.detectors.identity import content_id
from kdr.errors import KdrError
from kdr.run.cluster.provenance import version_of
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage

COMPARED = ("ray", "torch", "torchvision", "numpy")
"""Packages whose versions must be equal on all nodes, beside Python and kdr."""
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class Questions:
    """What every node is asked."""

    storage: Storage
    marks: StoredPath
    """Folder in the storage where each node leaves a mark for the others."""
    data: tuple[DataConfig, ...] = ()
    """Data sets that it must have."""
    weights: tuple[str, ...] = ()
    """Files of weights that it must have."""


@dataclass(frozen=True)
class GpuMemory:
    """One GPU, as its driver tells of it."""

    name: str
    free_gib: float
    total_gib: float


@dataclass(frozen=True)
class Answers:
    """What one node says of itself."""

    node: str
    """The node's name for people."""
    versions: Mapping[str, str]
    """Of Python, of kdr with a hash of its code, and of `COMPARED`."""
    contents: Mapping[str, str]
    """What of the data and weights it has -> the identity of its content."""
    problems: tuple[str, ...] = ()
    """What is wrong with the data or weights there, a line each."""
    not_written: str = ""
    """Why it could not write to the storage."""
    num_gpus_promised: int = 0
    """GPUs that Ray hands out there."""
    num_gpus_usable: int = 0
    """GPUs that torch can use there; looked at where Ray hands out any."""
    gpus: tuple[GpuMemory, ...] = ()
    """Their memory, where nvidia-smi tells it."""


def answer(node: str, questions: Questions, *, mark: str, num_gpus: int = 0) -> Answers:
    """Answers for the node on which this runs, and leaves its mark in the storage.

    Args:
        node: its name for people.
        questions: what is asked.
        mark: name of the file that is its mark.
        num_gpus: GPUs that Ray hands out there.
    """
    contents, problems = _contents(questions)
    return Answers(
        node,
        versions=versions_here(),
        contents=contents,
        problems=problems,
        not_written=_leave_mark(questions.marks / mark),
        num_gpus_promised=num_gpus,
        num_gpus_usable=_num_gpus_usable() if num_gpus else 0,
        gpus=_gpu_memory() if num_gpus else (),
    )


def unread_marks(folder: StoredPath, marks: Iterable[str]) -> list[str]:
    """Those of the marks that cannot be read here.

    Each is opened by its name: over NFS a listing may be as old as its cache.
    """
    return [mark for mark in marks if not _is_read(folder / mark)]


def remove_marks(folder: StoredPath, marks: Iterable[str]) -> None:
    """Removes the marks that can be seen here."""
    for mark in marks:
        with contextlib.suppress(OSError, KdrError):
            (folder / mark).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another node's mark is still there
        folder.rmdir()


def versions_here() -> dict[str, str]:
    """Versions of what trials are computed with: Python, kdr with a hash of its code,
    `COMPARED`.
    """
    code = f"{kdr.__version__} (code {_code_id()})"
    return {"python": platform.python_version(), "kdr": code} | {
        name: version_of(name) for name in COMPARED
    }


def gpu_memory_from(text: str) -> tuple[GpuMemory, ...]:
    """Reads what nvidia-smi prints as CSV: name, free and total MiB."""
    rows = [line.rsplit(", ", 2) for line in text.splitlines() if line.strip()]
    return tuple(
        GpuMemory(name, float(free) / _MIB_PER_GIB, float(total) / _MIB_PER_GIB)
        for name, free, total in rows
    )


def _code_id() -> str:
    """A hash of the Python files of kdr, wherever they lie."""
    root, digest = Path(kdr.__file__).parent, hashlib.blake2b(digest_size=4)
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _contents(questions: Questions) -> tuple[dict[str, str], tuple[str, ...]]:
    numbered = len(questions.data) > 1
    asked: dict[str, Callable[[], str]] = {
        f"data set {number}" if numbered else "data": partial(
            data_fingerprint, data, questions.storage
        )
        for number, data in enumerate(questions.data, 1)
    }
    asked |= {source: partial(content_id, source) for source in questions.weights}
    contents: dict[str, str] = {}
    problems: list[str] = []
    for name, identity in asked.items():
        try:
            contents[name] = identity()
        except KdrError as error:
            problems += str(error).splitlines()
    return contents, tuple(problems)


def _leave_mark(path: StoredPath) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    except OSError as error:
        return error.strerror or str(error)
    except KdrError as error:
        return str(error)
    return ""


def _is_read(path: StoredPath) -> bool:
    try:
        return path.read_text(encoding="utf-8") == path.name
    except (OSError, KdrError):
        return False


def _num_gpus_usable() -> int:
    import torch

    return torch.cuda.device_count()


def _gpu_memory() -> tuple[GpuMemory, ...]:
    """Asks the driver, not torch, which would take hundreds of MiB from trials that run there."""
    asked = [
        "nvidia-smi",
        "--query-gpu=name,memory.free,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpu_memory_from(found.stdout)
