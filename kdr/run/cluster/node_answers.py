"""Facts about one cluster node: versions, data, storage access, GPUs. Runs on that node.

`kdr.run.cluster.node_findings` judges the answers of all nodes.
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
"""Packages whose versions must be equal on all nodes, in addition to Python and kdr: Ray requires
equal versions of itself, and the other packages affect the last digits of a result."""
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class Questions:
    """The questions to every node."""

    storage: Storage
    marks: StoredPath
    """Folder in the storage in which each node writes a file for the others to read."""
    data: tuple[DataConfig, ...] = ()
    """Data sets that must exist on every node."""
    weights: tuple[str, ...] = ()
    """Weights files that must exist on every node."""


@dataclass(frozen=True)
class GpuMemory:
    """One GPU, as reported by its driver."""

    name: str
    free_gib: float
    total_gib: float


@dataclass(frozen=True)
class Answers:
    """The answers of one node."""

    node: str
    """The node's name, for messages."""
    versions: Mapping[str, str]
    """Versions of Python, of kdr with a hash of its code, and of `COMPARED`."""
    contents: Mapping[str, str]
    """Data set or weights file that exists here -> identity of its content."""
    problems: tuple[str, ...] = ()
    """Problems with its data or weights, one line each."""
    not_written: str = ""
    """Why it could not write to the storage; empty if it could."""
    num_gpus_promised: int = 0
    """GPUs that Ray assigns there."""
    num_gpus_usable: int = 0
    """GPUs that torch can use there; checked only if Ray assigns any."""
    gpus: tuple[GpuMemory, ...] = ()
    """Their memory, if nvidia-smi reports it."""


def answer(node: str, questions: Questions, *, mark: str, num_gpus: int = 0) -> Answers:
    """Returns the answers of the node on which this runs, and writes its mark into the storage.

    Args:
        node: its name, for messages.
        questions: what to report.
        mark: file name of its mark.
        num_gpus: GPUs that Ray assigns there.
    """
    contents, problems = _contents(questions)
    return Answers(
        node,
        versions=versions_here(),
        contents=contents,
        problems=problems,
        not_written=_leave_mark(questions.marks / mark),
        num_gpus_promised=num_gpus,
        # only with GPUs, since importing torch takes seconds
        num_gpus_usable=_num_gpus_usable() if num_gpus else 0,
        gpus=_gpu_memory() if num_gpus else (),
    )


def unread_marks(folder: StoredPath, marks: Iterable[str]) -> list[str]:
    """Returns the marks of other nodes that cannot be read here.

    Each is opened by name rather than listed: an NFS client may serve a listing from its cache, and
    then a shared storage would look as if it were not shared.
    """
    return [mark for mark in marks if not _is_read(folder / mark)]


def remove_marks(folder: StoredPath, marks: Iterable[str]) -> None:
    """Removes the marks and their folder; nodes do so at the same time, so any may be missing."""
    for mark in marks:
        with contextlib.suppress(OSError, KdrError):
            (folder / mark).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another node's mark is still there
        folder.rmdir()


def versions_here() -> dict[str, str]:
    """Returns the versions of Python, of kdr with a hash of its code, and of `COMPARED`."""
    code = f"{kdr.__version__} (code {_code_id()})"
    return {"python": platform.python_version(), "kdr": code} | {
        name: version_of(name) for name in COMPARED
    }


def gpu_memory_from(text: str) -> tuple[GpuMemory, ...]:
    """Parses the CSV that nvidia-smi prints: name, free and total MiB."""
    # from the right: a product name may contain a comma
    rows = [line.rsplit(", ", 2) for line in text.splitlines() if line.strip()]
    return tuple(
        GpuMemory(name, float(free) / _MIB_PER_GIB, float(total) / _MIB_PER_GIB)
        for name, free, total in rows
    )


def _code_id() -> str:
    """Returns a hash of kdr's Python files, independent of where they are installed.

    The version alone does not change between two commits, and nodes may run different checkouts.
    """
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
    # by content, not by path: a path may exist on every node but hold different files
    contents: dict[str, str] = {}
    problems: list[str] = []
    for name, identity in asked.items():
        try:
            contents[name] = identity()
        except KdrError as error:
            # collected, so that one check reports everything to fix on this node
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
    """Asks nvidia-smi, because torch would allocate hundreds of MiB on each GPU to answer."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.free,memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpu_memory_from(found.stdout)
