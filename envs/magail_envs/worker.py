"""Worker processes: each steps a share of the copies; `Workers` is the parent's side, `main` the child's.

A worker is ``python -m magail_envs.worker``. It reads one line of JSON that says what to build, then one line per
command (``reset`` or ``step``), and answers each line with one line of JSON: ``null`` when done, or
``[message, traceback]``, after which it ends. Actions and results go through a memory-mapped file with one record per
copy. There is no pickle and no fork, so the parent may hold threads and a GPU, and its main module is not run again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from dataclasses import asdict
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from magail_envs.copies import Copies, Spec, find_groups, record_dtype, where

START_TIMEOUT = 300.0  # seconds; a cold import of an environment on a slow disk takes a while
CLOSE_TIMEOUT = 5.0  # seconds that the environments of a worker get to close


class Workers:
    """The copies of one environment spread over worker processes; use it like `magail_envs.copies.Copies`.

    ``step_timeout`` is how many seconds a worker may take for one step of all its copies, resets included.
    """

    def __init__(
        self, spec: Spec, dtype: np.dtype[np.void], num_envs: int, num_workers: int, step_timeout: float
    ) -> None:
        self._name = spec.name
        self._step_timeout = step_timeout
        # Once every worker has mapped the file its name can go, so that nothing stays behind however the run ends.
        with tempfile.NamedTemporaryFile(dir=_shared_folder(num_envs * dtype.itemsize)) as file:
            self.records = np.asarray(np.memmap(file.name, dtype, "w+", shape=(num_envs,)))
            bounds = np.linspace(0, num_envs, num_workers + 1).astype(int).tolist()
            self._workers = [
                _Worker({"spec": asdict(spec), "file": file.name, "num_envs": num_envs, "share": share})
                for share in itertools.pairwise(bounds)
            ]
            self._receive(START_TIMEOUT)

    def reset(self) -> None:
        """Begin an episode with the seed ``next_seed`` in every copy."""
        self._command("reset")

    def step(self) -> None:
        """Step the ``active`` copies; those whose episode ends begin another with the seed ``next_seed``."""
        self._command("step")

    def _command(self, command: str) -> None:
        for worker in self._workers:
            worker.send(command)
        self._receive(self._step_timeout)

    def _receive(self, timeout: float) -> None:
        for worker in self._workers:
            failure = worker.receive(timeout)
            if failure is not None:
                message = f"{self._where(worker)}: {failure}"
                for other in self._workers:
                    other.process.kill()
                self.close()
                raise RuntimeError(message)

    def _where(self, worker: _Worker) -> str:
        first, last = worker.share
        for index in range(first, last):
            if self.records[index]["busy"]:
                return where(self._name, index, self.records[index])
        return f"{self._name}, copies {first} to {last - 1}"

    def close(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        while self._workers:
            self._workers.pop().join()


class _Worker:
    """The parent's handle of one worker process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.share: tuple[int, int] = job["share"]
        one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        # The parent's import path, so that the worker finds a module that the user has in the current folder.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "magail_envs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one_thread, "PYTHONPATH": path},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        weakref.finalize(self, self._stdin.close)  # who is forgotten rather than closed ends too
        self.send(json.dumps(job))

    def send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # receive() tells how the process ended
            self._stdin.write(line + "\n")
            self._stdin.flush()

    def receive(self, timeout: float) -> str | None:
        """Wait for the answer; what went wrong, if something did."""
        if not wait([self._stdout.fileno()], timeout):
            return f"its worker process did not answer within {timeout:g} s and was killed"
        line = self._stdout.readline()
        if not line.endswith("\n"):
            status = self.process.wait()
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            return f"its worker process {how}"
        answer = json.loads(line)
        return None if answer is None else f"{answer[0]}\n\nIn the worker process:\n{answer[1]}"

    def hang_up(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def join(self) -> None:
        try:
            self.process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stdout.close()


def _shared_folder(size: int) -> str | None:
    """A folder in memory if the system has one with room to spare (containers often give it 64 MB only)."""
    folder = "/dev/shm"
    return folder if os.path.isdir(folder) and shutil.disk_usage(folder).free > 2 * size else None


def _end_with(parent: int) -> None:
    """End this process soon after its parent, also where the environment hangs and never reads the closed pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Serve commands until the parent closes the pipe or ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Whatever an environment prints, in Python or in C, goes to stderr; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means

    def answer(content: Any) -> None:
        answers.write(json.dumps(content).encode() + b"\n")

    try:
        job = json.loads(sys.stdin.readline())
        spec = Spec(**job["spec"])
        first, last = job["share"]
        envs = [spec.build() for _ in range(first, last)]
        groups = find_groups(envs[0])
        records = np.asarray(np.memmap(job["file"], record_dtype(groups), "r+", shape=(job["num_envs"],)))
        copies = Copies(spec, envs, groups, records[first:last], first)
        answer(None)
        commands = {"reset": copies.reset, "step": copies.step}
        for line in sys.stdin:
            commands[line.strip()]()
            answer(None)
        copies.close()
    except BrokenPipeError:
        pass  # nobody is left to answer to
    except Exception as error:
        cause = error.__cause__ or error  # the environment's own; the parent says where it happened
        answer([f"{type(cause).__name__}: {cause}", "".join(traceback.format_exception(cause))])


if __name__ == "__main__":
    main()
