"""Valkey as operators run it: a Cluster of three nodes, and a primary with a replica under a Sentinel.

Every server dies with the tests' process, however that ends.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from gateway import embedded
from gateway.embedded import HOST
from gateway.local import free_port
from gateway.process import tail, tethered

PATIENCE_S = 20.0
NODE_TIMEOUT_MS = 1000
SERVICE = "queue"


class Server:
    def __init__(self, folder: Path, config: str = "", *flags: str) -> None:
        self.port = free_port()
        folder.mkdir()
        self._log = folder / "log"
        file = folder / "conf"
        file.write_text(f"port {self.port}\nbind {HOST}\ndir {folder}\nprotected-mode no\n{config}")
        binary = embedded.valkey_argv(0, folder)[0]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(tethered([binary, str(file), *flags]), stdout=log, stderr=log)
        self.client = redis.Redis(HOST, self.port, protocol=2, socket_timeout=5)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def ask(self, *command: str | int) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def until(self, check: Callable[[], object]) -> None:
        """Wait until it is true of a server that answers."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                if check():
                    return
            if time.monotonic() > deadline_s:
                raise AssertionError(f"it never came true; the end of the log:\n{tail(self._log)}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.client.close()


class Valkeys:
    """Servers that are killed in the end, and the URL by which a gateway finds the queue there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self.url = ""

    def start(self, config: str = "", *flags: str) -> Server:
        server = Server(self.folder / str(len(self.servers)), config + 'save ""\n', *flags)
        self.servers.append(server)
        server.until(lambda: server.ask("PING"))
        return server

    def empty(self) -> None:
        for server in self.servers:
            if server.ask("ROLE")[0] == b"master":
                server.ask("FLUSHALL")


@contextlib.contextmanager
def valkeys() -> Iterator[Valkeys]:
    with tempfile.TemporaryDirectory() as folder:
        running = Valkeys(Path(folder))
        try:
            yield running
        finally:
            for server in running.servers:
                server.kill()


@contextlib.contextmanager
def cluster() -> Iterator[Valkeys]:
    """Three primaries with a third of the slots each.  Its URL names one of them, and nobody."""
    with valkeys() as running:
        for _ in range(3):
            running.start(
                "cluster-enabled yes\n"
                f"cluster-port {free_port()}\n"
                f"cluster-node-timeout {NODE_TIMEOUT_MS}\n"
                "cluster-replica-no-failover yes\n"
            )
        first, *others = running.servers
        bounds = [0, 5461, 10922, 16384]
        for number, server in enumerate(running.servers):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            server.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        bus = first.ask("CONFIG", "GET", "cluster-port")[1]
        for server in others:
            server.ask("CLUSTER", "MEET", HOST, first.port, int(bus))
        for server in running.servers:
            server.until(lambda server=server: _knows_all(server))  # type: ignore[misc]
        running.url = f"redis+cluster://{HOST}:{first.port},{HOST}:{free_port()}"
        yield running


def _knows_all(server: Server) -> bool:
    info = server.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


@contextlib.contextmanager
def sentinel() -> Iterator[Valkeys]:
    """A primary, a replica and a Sentinel that is in a hurry.  Its URL names that one, and nobody."""
    with valkeys() as running:
        primary = running.start("repl-diskless-sync-delay 0\n")
        replica = running.start(f"replicaof {HOST} {primary.port}\n")
        replica.until(lambda: replica.ask("INFO")["master_link_status"] == "up")
        watcher = running.start(
            f"sentinel monitor {SERVICE} {HOST} {primary.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\n"
            f"sentinel failover-timeout {SERVICE} 3000\n",
            "--sentinel",
        )
        hurry = {"info-period": 100, "ping-period": 100, "election-timeout": 300, "tilt-period": 500}
        watcher.ask("SENTINEL", "DEBUG", *(word for pair in hurry.items() for word in pair))
        watcher.until(lambda: _has_replica(watcher))
        running.url = f"redis+sentinel://{HOST}:{free_port()},{HOST}:{watcher.port}/{SERVICE}"
        yield running


def _has_replica(watcher: Server) -> bool:
    """It hears of one by its primary's next INFO, and lists none until then."""
    listed = watcher.ask("SENTINEL", "REPLICAS", SERVICE)
    return any({b"slave", b"ok"} <= set(replica) for replica in listed)
