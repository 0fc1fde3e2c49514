"""Real Ray clusters on this machine: a head and more raylets, each in its own network namespace.

If that is not allowed, as without root, they share the machine's network, on different ports.
"""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import kdr

ROOT = Path(kdr.__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
_START_S = 180
_NUMBERS = itertools.count()


@dataclass
class Node:
    """One raylet with the processes that it started."""

    address: str
    prefix: tuple[str, ...]
    """Prefix of commands that run in its network."""
    processes: list[psutil.Process]

    @property
    def raylet(self) -> psutil.Process:
        return next(process for process in self.processes if process.name() == "raylet")

    def unplug(self) -> None:
        """Ends the node like a power cut: everything at once, without a message to anyone."""
        if self.prefix:
            subprocess.run([*self.prefix, "ip", "link", "set", "eth0", "down"], check=True)
        self.kill()

    def kill(self) -> None:
        """Kills all of its processes, workers included."""
        alive = [process for process in self.processes if process.is_running()]
        for process in [
            *alive,
            *(child for one in alive for child in one.children(recursive=True)),
        ]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass
class Cluster:
    """A cluster whose nodes are added one by one; the first is its head.

    Args:
        network: returns the address of a node by its number, and the prefix of commands in its
            network.
        env: environment of every process that it starts.
    """

    network: Callable[[int], tuple[str, tuple[str, ...]]]
    env: Mapping[str, str]
    # short: a socket's path has 107 characters at most
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="kdr-", dir="/tmp")))
    nodes: list[Node] = field(default_factory=list)
    port: int = field(default_factory=lambda: free_port())
    dashboard_port: int = field(default_factory=lambda: free_port())
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The value for `--address`."""
        return f"{self.nodes[0].address}:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.nodes[0].address}:{self.dashboard_port}"

    @property
    def has_networks(self) -> bool:
        """Whether each node has its own network, and may have its own mounts."""
        return bool(self.network(1)[1])

    def add_node(
        self,
        cpus: float = 1,
        *,
        gpus: int = 0,
        env: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
    ) -> Node:
        """Starts a raylet; the first one is the head.

        Args:
            cpus: CPUs that it offers.
            gpus: GPUs that it offers.
            env: environment in addition to the cluster's.
            wrap: prefix of its command, after that of its network.
        """
        address, prefix = self.network(len(self.nodes))
        place: list[object]
        if self.nodes:
            place = ["--address", self.address]
        else:
            place = [
                "--head",
                "--port",
                self.port,
                "--dashboard-host",
                address,
                "--dashboard-port",
                self.dashboard_port,
            ]
        # one for each node: nodes unpack the files of jobs there
        place += ["--temp-dir", self.folder / str(len(self.nodes))]
        size = ["--num-cpus", cpus, "--num-gpus", gpus, "--object-store-memory", 100 * 2**20]
        command = [
            RAY,
            "start",
            *place,
            *size,
            "--node-ip-address",
            address,
            "--disable-usage-stats",
        ]
        env = {**_of_interface(address), **(env or {})}
        before = set(self._processes())
        done = subprocess.run(
            [*prefix, *wrap, *map(str, command)],
            env=self._env(env),
            capture_output=True,
            text=True,
            timeout=_START_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        node = Node(
            address, prefix, [process for process in self._processes() if process not in before]
        )
        self.nodes.append(node)
        return node

    def orchestrate(
        self, *arguments: object, on: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts `orchestrate.py` on a node."""
        return self.start(sys.executable, ROOT / "orchestrate.py", *arguments, on=on, env=env)

    def start(
        self, *command: object, on: int = 0, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.Popen[str]:
        """Starts a command in the network of a node, or, with a higher number, of a machine outside
        the cluster; stdout and stderr share one pipe."""
        prefix = self.network(on)[1] if on >= len(self.nodes) else self.nodes[on].prefix
        process = subprocess.Popen(
            [*prefix, *map(str, command)],
            env=self._env(env),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def python(self, code: str, *arguments: object) -> Any:
        """Runs code on the head, joined to the cluster; returns its variable `result`, by way of
        JSON."""
        joined = (
            "import json, logging, ray, sys\nray.init(sys.argv[1], logging_level=logging.ERROR, "
            f"log_to_driver=False)\n{code}"
        )
        command = [
            sys.executable,
            "-c",
            f"{joined}\nprint('\\nresult:', json.dumps(result))",
            self.address,
            *map(str, arguments),
        ]
        found = subprocess.run(
            [*self.nodes[0].prefix, *command], env=self._env(None), capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        # Ray prints to stdout as well, such as that a raylet is slow
        return json.loads(
            next(
                line for line in found.stdout.splitlines() if line.startswith("result:")
            ).removeprefix("result:")
        )

    def output(self, process: subprocess.Popen[str], *, within_s: float = 400) -> str:
        """Returns the output of a process, at its end."""
        return process.communicate(timeout=within_s)[0]

    def wait_for(self, condition: Callable[[], Any], *, within_s: float = 240) -> Any:
        """Waits until a condition holds; returns its value."""
        until = time.monotonic() + within_s
        while not (found := condition()):
            assert time.monotonic() < until, "timed out"
            time.sleep(0.2)
        return found

    def close(self) -> None:
        """Ends everything that was started, and removes Ray's files."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for node in reversed(self.nodes):
            node.kill()
        for process in self._processes():  # of a node that failed to start
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _env(self, more: Mapping[str, str] | None) -> dict[str, str]:
        outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # as if the environment were activated before `ray start`
        path = f"{Path(sys.executable).parent}:{outer['PATH']}"
        return {
            **outer,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **self.env,
            **(more or {}),
        }

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(str(self.folder) in argument for argument in process.cmdline()):
                    found.append(process)
        return found


def _of_interface(address: str) -> dict[str, str]:
    """Returns the variable with which workers of several nodes find each other, since the machine's
    own name belongs to another network."""
    if not shutil.which("ip"):
        return {}
    found = subprocess.run(
        ["ip", "-o", "addr", "show", "to", address], capture_output=True, text=True
    ).stdout.split()
    return {"GLOO_SOCKET_IFNAME": found[1] if found else "eth0"}


def free_port() -> int:
    with socket.create_server(("", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def networks() -> Iterator[Callable[[int], tuple[str, tuple[str, ...]]]]:
    """Yields a function from a node's number to its address and command prefix. The head's network
    is the machine's own, so that the tests run on that node."""
    number = next(_NUMBERS)
    name = f"kdr{os.getpid() % 100000}-{number}"  # a device's name has 15 characters at most
    subnet = f"10.203.{(os.getpid() + number) % 250}"
    made: list[str] = []

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def namespaced(number: int) -> tuple[str, tuple[str, ...]]:
        space, outside = f"{name}-{number}", f"{name}n{number}"
        if number and space not in made:
            ip("netns", "add", space)
            made.append(space)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", outside, "master", name, "up")
            ip("-n", space, "addr", "add", f"{subnet}.{number + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", space, "link", "set", device, "up")
        return f"{subnet}.{number + 1}", ("ip", "netns", "exec", space) if number else ()

    def shared(_number: int) -> tuple[str, tuple[str, ...]]:
        return socket.gethostbyname(socket.gethostname()), ()

    try:
        ip("link", "add", name, "type", "bridge")
        ip("addr", "add", f"{subnet}.1/24", "dev", name)
        ip("link", "set", name, "up")
    except (OSError, subprocess.CalledProcessError):
        yield shared
        return
    try:
        yield namespaced
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        subprocess.run(["ip", "link", "delete", name], capture_output=True)


@contextlib.contextmanager
def open_cluster(**env: str) -> Iterator[Cluster]:
    """Yields a cluster without nodes, and ends it; `env` is for all of its processes."""
    with networks() as network:
        cluster = Cluster(network, {"RAY_AUTH_MODE": "disabled", **env})
        try:
            yield cluster
        finally:
            cluster.close()
