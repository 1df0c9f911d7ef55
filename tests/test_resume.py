"""A run that is killed and resumed ends bit for bit as one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from magail.checkpoint import Checkpoints
from magail.train import train, with_resume
from tests.test_config import composed

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


CLONE = [*OPTIONS, "bc.steps=2", "iterations=0", "symmetries=false", "env.mpe2.workers=0"]


def kept(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["seed=1"], "began with seed=0 and cannot go on with 1"),
        (["bc.steps=3"], "began with bc.steps=2 and cannot go on with 3"),
        (["demonstrations.count=1"], "began with demonstrations.count=4"),
        (["env.batched.num_envs=2"], "began with env.batched.num_envs=8"),
        (["opponents={agent: x}"], "began with opponents.agent=None"),
        (["generator.policy.hidden_sizes=[5]"], "its newest checkpoint does not fit"),
    ],
)
def test_a_run_does_not_go_on_as_another(changed, message, tmp_path):
    train(composed(*CLONE), tmp_path)
    before = kept(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(composed(*CLONE, *changed), tmp_path)
    assert kept(tmp_path) == before


def test_a_run_that_failed_before_it_began_is_forgotten(tmp_path):
    with pytest.raises(ValueError, match=r"there is no such file"):
        train(composed(*CLONE, f"demonstrations.path={tmp_path}/missing.npz"), tmp_path)
    train(composed(*CLONE), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").demonstrations.path is None


def test_what_a_run_may_go_on_with(tmp_path):
    train(composed(*CLONE), tmp_path)
    changed = ["iterations=1", "evaluation.final_episodes=3", "generator.learning_rate=0", "checkpoint.keep=1"]
    train(composed(*CLONE, *changed), tmp_path)
    train(OmegaConf.load(tmp_path / "config.yaml"), tmp_path)  # as resume= does, where nothing is auto any more
    assert OmegaConf.load(tmp_path / "config.yaml").iterations == 1
    assert logged(tmp_path)[-1]["iteration"] == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {
        "generator.policy.activation": "tanh",
        "generator.policy.box": "gaussian",
        "bc.learning_rate": 1e-3,
        "bc.weight_decay": 4.0,  # 300 over 3 demonstrations of 25 steps; the fourth is held out
    }
    before = kept(tmp_path)
    with pytest.raises(ValueError, match="1 iterations are done, and cannot be undone: leave iterations=0 out"):
        train(composed(*CLONE), tmp_path)
    assert kept(tmp_path) == before


def test_a_run_without_its_checkpoints_is_left_alone(tmp_path):
    train(composed(*CLONE), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = kept(tmp_path)
    with pytest.raises(ValueError, match="its checkpoints are gone"):
        train(composed(*CLONE), tmp_path)
    assert kept(tmp_path) == before


def test_resume_in_a_folder_that_hydra_would_have_to_quote(tmp_path):
    folder = tmp_path / "lr=0.1,it's (1)"
    train(composed(*CLONE), folder)
    finish(start(f"resume={folder}", "iterations=1"))
    assert logged(folder)[-1]["iteration"] == 0


def test_resume_refuses_another_choice_for_a_part(tmp_path):
    train(composed(*CLONE), tmp_path)
    with pytest.raises(ValueError, match="generator=trpo: a run keeps its generator"):
        with_resume(["train", f"resume={tmp_path}", "generator=trpo"])


@pytest.mark.parametrize("text", ["a: [", "", "- a"])
def test_resume_of_a_damaged_configuration(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        with_resume(["train", f"resume={tmp_path}"])


def test_resume_wants_a_run(tmp_path):
    process = start(f"resume={tmp_path}")
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no run there (no config.yaml)" in output
    assert "Traceback" not in output
