"""A run that is killed and resumed ends bit for bit as one that never was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from magail.checkpoint import Checkpoints

ITERATIONS = 40
OPTIONS = [
    f"iterations={ITERATIONS}",
    "rollout_steps=10",  # episodes have 25 steps: every checkpoint falls into the middle of some
    "demonstrations.count=4",
    "demonstrations.held_out=0.25",
    "start_from_demonstrations=0.5",
    "bc.steps=20",
    "bc.coefficient=0.1",
    "checkpoint.every=7",
    "evaluation.every=9",
    "evaluation.episodes=2",
    "evaluation.final_episodes=4",
    "evaluation.video_episodes=0",
    "discriminator.steps=2",
    "discriminator.batch_size=32",
    "generator.epochs=1",
    "logger.mode=disabled",
    "env.mpe2.num_envs=3",
    "env.mpe2.workers=1",
    "env.batched.num_envs=8",
]


def start(*overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "magail.train", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has SIGINT ignored, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def kill_after(process, run_dir, iteration):
    """SIGKILL the run as soon as it has logged ``iteration``."""
    deadline = time.monotonic() + 120
    while not any(line["iteration"] >= iteration for line in logged(run_dir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def logged(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)  # nan is nan


@pytest.mark.parametrize("backend", ["batched", "mpe2"])
def test_killed_and_resumed_is_the_same_run(backend, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*OPTIONS, f"env.backend={backend}"]
    finish(start(*options, f"hydra.run.dir={whole}"))

    kill_after(start(*options, f"hydra.run.dir={killed}"), killed, 3)  # before the first checkpoint of the loop
    kill_after(start(f"resume={killed}"), killed, 17)
    kill_after(start(f"resume={killed}"), killed, 30)
    finish(start(f"resume={killed}"))

    assert len(logged(whole)) == ITERATIONS + 1  # cloning logs one line
    assert logged(killed) == logged(whole)
    states = [Checkpoints(run / "checkpoints", 2).latest() for run in (whole, killed)]
    assert states[0]["iteration"] == ITERATIONS
    assert equal(*states)
    assert (whole / "results.json").read_text() == (killed / "results.json").read_text()


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    process = start(*OPTIONS, "iterations=100000", f"hydra.run.dir={tmp_path}")
    while not any(line["iteration"] >= 1 for line in logged(tmp_path)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"resume={tmp_path}" in output.replace("\n", "")
    assert "Traceback" not in output


def test_resume_wants_a_run(tmp_path):
    process = start(f"resume={tmp_path}")
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no run there (no config.yaml)" in output
    assert "Traceback" not in output
