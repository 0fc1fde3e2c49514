"""Checks that every node of the joined cluster is ready for a study."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdr.config.study import Study
from kdr.errors import ClusterError
from kdr.plan.inputs import data_of, weights_files_of
from kdr.run.cluster.node_answers import (
    Answers,
    Questions,
    answer,
    remove_marks,
    unread_marks,
    versions_here,
)
from kdr.run.cluster.node_findings import Silent, judged_nodes
from kdr.run.observer import Observer
from kdr.storage.layout import Storage
from kdr.training.findings import Finding

ANSWER_WITHIN_S = 120.0
"""Time limit for all answers: a node starts a process, and may have to fingerprint every file of a
data set."""
_DASHBOARD_WITHIN_S = 5


def check_nodes(study: Study, storage: Storage, observer: Observer) -> None:
    """Checks every node and passes warnings to the observer.

    Raises:
        ClusterError: with all failed checks and their fixes.
    """
    findings = [finding for finding in cluster_findings(study, storage) if finding.state != "ok"]
    failed = [finding for finding in findings if finding.state == "failed"]
    for finding in findings:
        if finding.state == "warning":
            observer.finding(finding)
    if failed:
        raise ClusterError(f"{finding.text}. {finding.fix}" for finding in failed)


def cluster_findings(study: Study | None, storage: Storage) -> Iterator[Finding]:
    """Yields the findings about the nodes of the running Ray and its dashboard.

    Args:
        study: the study whose data and weights every node must have; None checks neither.
        storage: the storage that every node must share.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    names = {
        key: f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        for key, node in nodes.items()
    }
    questions = Questions(
        storage,
        storage.marks(uuid.uuid4().hex[:12]),  # several checks may run at the same time
        data=() if study is None else tuple(data_of(study)),
        weights=() if study is None else tuple(weights_files_of(study)),
    )
    answers, unread = _asked(nodes, names, questions)
    yield from judged_nodes(
        [answer for answer in answers.values() if isinstance(answer, Answers)],
        [answer for answer in answers.values() if isinstance(answer, Silent)],
        unread,
        expected=versions_here(),
        storage=str(storage.root),
    )
    yield _dashboard()


def _asked(
    nodes: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], questions: Questions
) -> tuple[dict[str, Answers | Silent], dict[str, list[str]]]:
    """Returns node -> its answer, and name of a node -> the nodes whose marks it cannot read.

    Works in three rounds, each on all nodes at once: all write their marks, then read those of the
    others, then remove them.
    """
    until = time.monotonic() + ANSWER_WITHIN_S
    given = {
        node: (
            names[node],
            questions,
            {"mark": node, "num_gpus": int(nodes[node]["Resources"].get("GPU", 0))},
        )
        for node in nodes
    }
    answers = _on_each(given, answer, names, until)
    marks = [
        node for node, one in answers.items() if isinstance(one, Answers) and not one.not_written
    ]
    unread = _on_each(
        {node: (questions.marks, marks, {}) for node in marks}, unread_marks, names, until
    )
    # on every node: without a shared storage each has only its own mark
    _on_each({node: (questions.marks, marks, {}) for node in marks}, remove_marks, names, until)
    named = {
        names[node]: [names[mark] for mark in found]
        for node, found in unread.items()
        if not isinstance(found, Silent)
    }
    return {
        **answers,
        **{node: one for node, one in unread.items() if isinstance(one, Silent)},
    }, named


def _on_each(
    arguments: Mapping[str, tuple[Any, ...]],
    function: Callable[..., Any],
    names: Mapping[str, str],
    until: float,
) -> dict[str, Any]:
    """Runs a function on several nodes at the same time; returns its results, or `Silent`, by node.

    Args:
        arguments: id of a node -> the function's arguments there, the last one a mapping of
            keyword arguments.
        function: a function that every node can import.
        names: id of a node -> its name, for messages.
        until: monotonic time at which to stop waiting.
    """
    # no CPUs, so that a node answers even if other studies' trials use all its CPUs
    task = ray.remote(num_cpus=0)(function)
    running = {
        node: (
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(*given, **named)
        )
        for node, (*given, named) in arguments.items()
    }
    results: dict[str, Any] = {}
    for node, result in running.items():
        try:
            # one time limit for all: they run in parallel, so it does not add up
            results[node] = ray.get(result, timeout=max(0.1, until - time.monotonic()))
        except (RayError, ImportError) as error:
            # the last line of a remote traceback is the error itself
            lines = str(error).strip().splitlines() or [type(error).__name__]
            results[node] = Silent(names[node], lines[-1])
    return results


def _dashboard() -> Finding:
    """Checks the dashboard's state API, which `ray job` and Ray's own clean-up use."""
    from ray.util.state import list_nodes

    fix = (
        "Install ray[default] and start the head with --dashboard-host=0.0.0.0. Without it `ray "
        "job submit` does not work"
    )
    # no public API returns the URL to a driver that joined the cluster (Ray 2.60)
    node: Any = ray._private.worker.global_worker.node
    url = node.webui_url
    if not url:
        return Finding("dashboard", "warning", "not running", fix)
    try:
        list_nodes(address=f"http://{url}", limit=1, timeout=_DASHBOARD_WITHIN_S)
    except Exception as error:  # many kinds, depending on what listens there
        return Finding(
            "dashboard",
            "warning",
            f"no answer from its state API at {url}: {type(error).__name__}",
            fix,
        )
    return Finding("dashboard", "ok", f"its state API answers at {url}")
