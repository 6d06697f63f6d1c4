"""A real tritonserver, started by the script of a repository; needs nothing but Python."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 120


@dataclass
class Server:
    """A running server: its process, ports on loopback, and what it printed."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    @property
    def url(self) -> str:
        """Of the HTTP service."""
        return f"http://127.0.0.1:{self.http}"

    def ready(self) -> bool:
        """Whether all models can be asked."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End it and its Python processes without a chance to tidy up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(tritonserver: Path, repository: Path, log: Path) -> Iterator[Server]:
    """Start the server by the repository's own script and wait until it is ready."""
    http, grpc = free_port(), free_port()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [repository / "run_triton.sh", f"--http-port={http}", f"--grpc-port={grpc}", "--allow-metrics=false"],
            env={**os.environ, "TRITONSERVER": str(tritonserver), "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, http, grpc, log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"the server did not start (exit code {process.poll()}):\n{tail}")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            server.kill()
