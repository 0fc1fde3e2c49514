"""What the answers of a cluster's nodes mean: whether a study can run on all of them, and how to
fix what is in the way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdr.run.cluster.node_answers import Answers
from kdr.training.findings import Finding

_AT_MOST = 5
"""Nodes that are named in one line."""


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
    """What all answers together mean.

    Args:
        answers: of the nodes that answered.
        silent: the nodes that did not.
        unread: node -> the nodes whose mark in the storage it cannot read.
        expected: versions of the process that asks.
        storage: the storage's root, as it is written.
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
            "Install the same kdr there, in the Python that its Ray was started with, or give "
            "--send-code",
        )


def _versions(answers: Sequence[Answers], expected: Mapping[str, str]) -> Finding:
    wrong = [
        f"{name} must be {version} on every node, got "
        f"{_by_value({one.node: one.versions.get(name, 'none') for one in others})}"
        for name, version in expected.items()
        if (others := [one for one in answers if one.versions.get(name) != version])
    ]
    if wrong:
        fix = (
            "Start Ray on all nodes from the same environment; --send-code sends the code of kdr "
            "alone"
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
            f"--storage: must be a place that every node can write to, got {storage} with "
            f"{_by_value(not_written)}"
        )
        return Finding(
            "shared storage",
            "failed",
            text,
            "Mount it there for writing, by the user that Ray runs as",
        )
    blind = {
        node: f"no sight of what {_named(marks)} wrote" for node, marks in unread.items() if marks
    }
    if blind:
        text = (
            f"--storage: must be the same place on every node, got {storage} with "
            f"{_by_value(blind)}"
        )
        return Finding(
            "shared storage",
            "failed",
            text,
            "Name a folder that all nodes mount, such as one on NFS",
        )
    return Finding(
        "shared storage",
        "ok",
        f"{storage}: what each of {_counted(len(answers))} wrote, all can read",
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
                f"{one.node}: torch must see the {one.num_gpus_promised} GPUs that Ray hands out, "
                f"got {one.num_gpus_usable}"
            )
            fix = (
                "See nvidia-smi there, its driver against torch's CUDA, and --num-gpus of `ray "
                "start`"
            )
            yield Finding("GPUs", "failed", text, fix)
        for gpu in one.gpus:
            if gpu.free_gib < gpu.total_gib / 2:
                text = (
                    f"{one.node}: {gpu.name} has {gpu.free_gib:.1f} of {gpu.total_gib:.1f} GiB free"
                )
                yield Finding(
                    "GPUs",
                    "warning",
                    text,
                    "A trial runs there, or a process that Ray does not know: see nvidia-smi",
                )
    kinds: dict[str, int] = {}
    for gpu in (gpu for one in answers for gpu in one.gpus):
        kind = f"{gpu.name} of {gpu.total_gib:.0f} GiB"
        kinds[kind] = kinds.get(kind, 0) + 1
    if kinds:
        yield Finding("GPUs", "ok", ", ".join(f"{count} x {kind}" for kind, count in kinds.items()))


def _by_value(of_nodes: Mapping[str, str]) -> str:
    """Values with the nodes that have them: `1.0 on a and b, 2.0 on c`."""
    nodes: dict[str, list[str]] = {}
    for node, value in of_nodes.items():
        nodes.setdefault(value, []).append(node)
    return "; ".join(f"{value} on {_named(named)}" for value, named in nodes.items())


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - _AT_MOST
    return ", ".join(nodes[:_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _counted(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
