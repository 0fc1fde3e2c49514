"""The files of deploy/, checked without a cluster: schemas, consistency, a dry run."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

import kdr
from kdr.config.study import Resources

ROOT = Path(kdr.__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def pods() -> list[dict[str, Any]]:
    cluster = read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    return [
        group["template"]["spec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


def test_the_ray_job_has_only_fields_of_a_ray_job() -> None:
    job = read("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= {
        "entrypoint",
        "runtimeEnvYAML",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == {
            "groupName",
            "replicas",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
        }
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    parameters = [
        cluster["headGroupSpec"]["rayStartParams"],
        *(group["rayStartParams"] for group in cluster["workerGroupSpecs"]),
    ]
    assert all(isinstance(value, str) for given in parameters for value in given.values()), (
        "KubeRay accepts strings only"
    )


def test_every_pod_mounts_its_volumes_and_the_storage() -> None:
    environment = yaml.safe_load(read("kuberay-rayjob.yaml")["spec"]["runtimeEnvYAML"])["env_vars"]
    storage = Path(environment["KDR_STORAGE"])
    for pod in pods():
        [container] = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert Path(mounts["shared"]) in storage.parents
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert len({pod["containers"][0]["image"] for pod in pods()}) == 1, (
        "all nodes need the same environment"
    )
    grace_s = Resources().grace_s
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > grace_s
    assert all(pod.get("terminationGracePeriodSeconds", grace_s + 1) > grace_s for pod in pods())


def test_versions_match_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    version = read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version}\n" in constraints
    image = (DEPLOY / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{version}-py311" in image
    assert pods()[0]["containers"][0]["image"] in image
    assert kdr.__version__ == pods()[0]["containers"][0]["image"].rpartition(":")[2]


def test_the_study_of_the_job_exists() -> None:
    program, command, study = (
        read("kuberay-rayjob.yaml")["spec"]["entrypoint"].removeprefix("python ").split()
    )
    assert command == "run"
    assert all((ROOT / Path(path).relative_to("/kdr")).exists() for path in (program, study))


def test_ray_up_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = read("ray-up.yaml")
    assert (
        content["min_workers"] == content["max_workers"] == len(content["provider"]["worker_ips"])
    )
    validate_config(prepare_config(content))


def test_an_unknown_key_in_a_cluster_file_is_found() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="set_up_commands"):
        validate_config(prepare_config({**read("ray-up.yaml"), "set_up_commands": []}))


@pytest.mark.parametrize("name", ["slurm.sh", "ray-up.yaml"])
def test_options_of_ray_start_exist(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = {
        option
        for line in re.findall(r"ray start (.*)", (DEPLOY / name).read_text())
        for option in re.findall(r"--[a-z-]+", line)
    }
    assert used
    assert used <= known


class Slurm:
    """Runs slurm.sh with fake commands, which record their arguments, for a job of two nodes."""

    def __init__(self, folder: Path, study: str) -> None:
        self.notes = folder / "notes"
        (folder / ".venv" / "bin").mkdir(parents=True)
        commands = folder / "commands"
        commands.mkdir()
        scripts = {
            "scontrol": (
                'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else note "scontrol $*"; fi'
            ),
            "srun": 'shift 3; note "${1#--nodelist=}: ${*:2}"',
            "python": f'if [ "$1" = -c ]; then exit 0; fi; note "driver: $*"; {study}',
        }
        for name, body in scripts.items():
            note = f'note() {{ echo "$*" >> {self.notes}; }}'
            (commands / name).write_text(f"#!/bin/bash\n{note}\n{body}\n")
            (commands / name).chmod(0o755)
        (folder / ".venv" / "bin" / "activate").write_text(f"PATH={commands}:$PATH\n")
        job = {
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_SUBMIT_DIR": str(folder),
        }
        env = {**os.environ, **job, "PATH": f"{commands}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(["bash", DEPLOY / "slurm.sh", "study.yaml"], env=env)

    def has_recorded(self, line: str) -> bool:
        return self.notes.exists() and line in self.notes.read_text()


def test_the_slurm_script_starts_ray_on_all_nodes_and_the_study_on_the_head(tmp_path: Path) -> None:
    job = Slurm(tmp_path, "exit 1")
    assert job.process.wait(30) == 1, "SLURM gets the exit code of the study"
    # the script does not wait for the background commands that start Ray
    end = time.monotonic() + 30
    while not job.has_recorded("n2: ray start") and time.monotonic() < end:
        time.sleep(0.05)
    lines = job.notes.read_text().splitlines()
    temp = "--temp-dir=/tmp/ray-12345 --disable-usage-stats"
    assert sorted(lines) == [  # in any order, because they start concurrently
        "driver: orchestrate.py run study.yaml --address n1:22345",
        f"n1: ray start --block --head --port=22345 {temp}",
        f"n2: ray start --block --address=n1:22345 {temp}",
    ]


def test_sigterm_ends_the_study_cleanly_before_the_job_is_requeued(
    tmp_path: Path,
) -> None:
    job = Slurm(
        tmp_path, 'trap "sleep 0.3; note ended; exit 143" TERM; while true; do sleep 0.1; done'
    )
    until = time.monotonic() + 30
    while not job.has_recorded("driver:"):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.3)
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(30) == 143
    assert job.notes.read_text().splitlines()[-2:] == ["ended", "scontrol requeue 12345"]


def test_the_installed_ray_is_the_pinned_version() -> None:
    assert f"\nray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text()
