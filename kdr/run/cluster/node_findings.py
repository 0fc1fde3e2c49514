"""Judges the answers of a cluster's nodes: whether a study can run on all, and the fix if not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdr.run.cluster.node_answers import Answers
from kdr.training.findings import Finding

_MAX_NAMED = 5
"""Most nodes named in one line; the others are counted."""


@dataclass(frozen=True)
class Silent:
    """A node that could not answer."""

    node: str
    reason: str


def judged_nodes(
    answers: Sequence[Answers],
    silent: Sequence[Silent],
    unread: Mapping[str, Sequence[str]],
    *,
    expected: Mapping[str, str],
    storage: str,
) -> Iterator[Finding]:
    """Yields the findings about all nodes.

    Args:
        answers: the nodes that answered.
        silent: the nodes that did not.
        unread: node -> the nodes whose mark in the storage it cannot read.
        expected: versions of the driver, which every node must have.
        storage: the storage's root, for messages.
    """
    yield from _silence(silent)
    if answers:
        yield _versions(answers, expected)
        yield _storage(answers, unread, storage)
        yield from _contents(answers)
        yield from _gpus(answers)


def _silence(silent: Sequence[Silent]) -> Iterator[Finding]:
    for node in silent:
        yield Finding(
            "nodes",
            "failed",
            f"{node.node}: must be able to run kdr, got {node.reason}",
            "Install the same kdr there, in the Python environment of its Ray, or use --send-code",
        )


def _versions(answers: Sequence[Answers], expected: Mapping[str, str]) -> Finding:
    # the driver's versions are expected, because it computes the trials' keys
    wrong = [
        f"{name} must be {version} on every node, got "
        f"{_by_value({one.node: one.versions.get(name, 'none') for one in others})}"
        for name, version in expected.items()
        if (others := [one for one in answers if one.versions.get(name) != version])
    ]
    if wrong:
        fix = (
            "Start Ray on all nodes from the same environment; --send-code sends only the code of "
            "kdr"
        )
        return Finding("versions", "failed", "; ".join(wrong), fix)
    named = ", ".join(f"{name} {version}" for name, version in expected.items())
    return Finding("versions", "ok", f"equal on {_counted(len(answers))}: {named}")


def _storage(
    answers: Sequence[Answers], unread: Mapping[str, Sequence[str]], storage: str
) -> Finding:
    not_written = {one.node: one.not_written for one in answers if one.not_written}
    if not_written:
        text = (
            f"--storage: must be writable on every node, got {storage} with "
            f"{_by_value(not_written)}"
        )
        return Finding(
            "shared storage",
            "failed",
            text,
            "Mount it there, writable by the user of Ray",
        )
    # writable everywhere, but not the same folder: for example a local disk at the same path
    blind = {node: f"no files of {_named(marks)}" for node, marks in unread.items() if marks}
    if blind:
        text = (
            f"--storage: must be the same place on every node, got {storage} with "
            f"{_by_value(blind)}"
        )
        return Finding(
            "shared storage",
            "failed",
            text,
            "Name a folder that all nodes mount, for example on NFS, or an object store",
        )
    return Finding(
        "shared storage",
        "ok",
        f"{storage}: written by each of {_counted(len(answers))}, readable on all",
    )


def _contents(answers: Sequence[Answers]) -> Iterator[Finding]:
    for problem in dict.fromkeys(problem for one in answers for problem in one.problems):
        where = [one.node for one in answers if problem in one.problems]
        yield Finding(
            "files",
            "failed",
            f"on {_named(where)}: {problem}",
            "Copy it to the same path there, or mount it",
        )
    # files missing on some nodes are reported above; this compares the nodes that have them
    names = dict.fromkeys(name for one in answers for name in one.contents)
    for name in names:
        found = {one.node: one.contents[name] for one in answers if name in one.contents}
        if len(set(found.values())) > 1:
            text = f"{name}: must be the same on every node, got {_by_value(found)}"
            yield Finding(
                "files",
                "failed",
                text,
                "Copy one node's files over the others', or mount them from one place",
            )
        elif len(found) == len(answers):
            yield Finding("files", "ok", f"{name}: the same on {_counted(len(answers))}")


def _gpus(answers: Sequence[Answers]) -> Iterator[Finding]:
    for one in answers:
        if one.num_gpus_usable < one.num_gpus_promised:
            text = (
                f"{one.node}: torch must see the {one.num_gpus_promised} GPUs that Ray assigns, "
                f"got {one.num_gpus_usable}"
            )
            fix = (
                "Check nvidia-smi there, the driver version against torch's CUDA, and --num-gpus "
                "of `ray start`"
            )
            yield Finding("GPUs", "failed", text, fix)
        for gpu in one.gpus:
            # a desktop or an idle CUDA context uses a few hundred MiB, another training run far
            # more
            if gpu.free_gib < gpu.total_gib / 2:
                text = (
                    f"{one.node}: {gpu.name} has {gpu.free_gib:.1f} of {gpu.total_gib:.1f} GiB free"
                )
                yield Finding(
                    "GPUs",
                    "warning",
                    text,
                    "A trial or a process outside Ray is using it: see nvidia-smi",
                )
    kinds: dict[str, int] = {}
    for gpu in (gpu for one in answers for gpu in one.gpus):
        kind = f"{gpu.name} of {gpu.total_gib:.0f} GiB"
        kinds[kind] = kinds.get(kind, 0) + 1
    if kinds:
        yield Finding("GPUs", "ok", ", ".join(f"{count} x {kind}" for kind, count in kinds.items()))


def _by_value(of_nodes: Mapping[str, str]) -> str:
    """Groups nodes by their value: `1.0 on a, b; 2.0 on c`."""
    nodes: dict[str, list[str]] = {}
    for node, value in of_nodes.items():
        nodes.setdefault(value, []).append(node)
    return "; ".join(f"{value} on {_named(named)}" for value, named in nodes.items())


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - _MAX_NAMED
    return ", ".join(nodes[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
