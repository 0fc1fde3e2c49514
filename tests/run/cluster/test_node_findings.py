"""Findings from the answers of a cluster's nodes; every case as plain data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kdr.run.cluster.node_answers import Answers, GpuMemory
from kdr.run.cluster.node_findings import Silent, judged_nodes
from kdr.training.findings import Finding

VERSIONS = {"python": "3.11.7", "kdr": "0.1.0 (code a)"}
GOOD = Answers("n1", VERSIONS, {"data": "d1", "/w.pt": "file-1"})
H100 = GpuMemory("H100", 79.0, 80.0)


def node(name: str, **changes: Any) -> Answers:
    return dataclasses.replace(GOOD, node=name, **changes)


def judged(
    answers: Sequence[Answers],
    silent: Sequence[Silent] = (),
    unread: Mapping[str, Sequence[str]] | None = None,
) -> list[Finding]:
    return list(judged_nodes(answers, silent, unread or {}, expected=VERSIONS, storage="/runs"))


def test_equal_nodes_pass() -> None:
    found = judged([GOOD, node("n2")], unread={"n1": [], "n2": []})
    assert [(finding.name, finding.state) for finding in found] == [
        ("versions", "ok"),
        ("shared storage", "ok"),
        ("files", "ok"),
        ("files", "ok"),
    ]
    assert found[0].text == "equal on 2 nodes: python 3.11.7, kdr 0.1.0 (code a)"


@pytest.mark.parametrize(
    ("changes", "unread", "name", "text"),
    [
        (
            {"versions": VERSIONS | {"python": "3.12.1"}},
            {},
            "versions",
            "python must be 3.11.7 on every node, got 3.12.1 on n2",
        ),
        (
            {"versions": {"kdr": "0.1.0 (code b)"}},
            {},
            "versions",
            (
                "python must be 3.11.7 on every node, got none on n2; "
                "kdr must be 0.1.0 (code a) on every node, got 0.1.0 (code b) on n2"
            ),
        ),
        (
            {"not_written": "Read-only file system"},
            {},
            "shared storage",
            (
                "--storage: must be writable on every node, got /runs with Read-only "
                "file system on n2"
            ),
        ),
        (
            {},
            {"n1": ["n2"], "n2": ["n1"]},
            "shared storage",
            (
                "--storage: must be the same place on every node, got /runs with "
                "no files of n2 on n1; no files of n1 on n2"
            ),
        ),
        (
            {"contents": {"data": "d2", "/w.pt": "file-1"}},
            {},
            "files",
            "data: must be the same on every node, got d1 on n1; d2 on n2",
        ),
        (
            {
                "contents": {"data": "d1"},
                "problems": ("/w.pt: no such weights file",),
            },
            {},
            "files",
            "on n2: /w.pt: no such weights file",
        ),
        (
            {"num_gpus_promised": 2, "num_gpus_usable": 1},
            {},
            "GPUs",
            "n2: torch must see the 2 GPUs that Ray assigns, got 1",
        ),
    ],
)
def test_a_difference_between_nodes_fails_and_names_the_node(
    changes: dict[str, Any], unread: dict[str, list[str]], name: str, text: str
) -> None:
    failed = [
        finding
        for finding in judged([GOOD, node("n2", **changes)], unread=unread)
        if finding.state == "failed"
    ]
    assert [(finding.name, finding.text) for finding in failed] == [(name, text)]
    assert failed[0].fix


def test_a_node_that_cannot_run_kdr_fails_and_the_others_pass() -> None:
    found = judged([GOOD], [Silent("n2", "ModuleNotFoundError: No module named 'kdr'")])
    assert (found[0].state, found[0].text) == (
        "failed",
        "n2: must be able to run kdr, got ModuleNotFoundError: No module named 'kdr'",
    )
    assert {finding.state for finding in found[1:]} == {"ok"}
    assert [finding.state for finding in judged([], [Silent("n1", "no answer")])] == ["failed"]


def test_of_many_nodes_some_are_named_and_the_rest_counted() -> None:
    [wrong] = [
        finding
        for finding in judged(
            [
                GOOD,
                *(node(f"m{number}", versions={**VERSIONS, "kdr": "0.2"}) for number in range(99)),
            ]
        )
        if finding.state == "failed"
    ]
    assert wrong.text.endswith("got 0.2 on m0, m1, m2, m3, m4 and 94 more")


def test_gpus_are_counted_by_kind_with_a_warning_for_one_in_use() -> None:
    gpus = {"num_gpus_promised": 2, "num_gpus_usable": 2}
    found = judged(
        [
            node("n1", **gpus, gpus=(H100, H100)),
            node("n2", **gpus, gpus=(H100, GpuMemory("A100", 10.0, 40.0))),
        ]
    )
    of_gpus = [(finding.state, finding.text) for finding in found if finding.name == "GPUs"]
    assert of_gpus == [
        ("warning", "n2: A100 has 10.0 of 40.0 GiB free"),
        ("ok", "3 x H100 of 80 GiB, 1 x A100 of 40 GiB"),
    ]
