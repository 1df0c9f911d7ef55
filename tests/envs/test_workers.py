"""Worker processes: the same results as without, and an account of whatever happens to them."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from magail_envs import worker
from magail_envs.pettingzoo import PettingZooEnv
from tests.envs.playing import assert_same, play

torch.set_num_threads(1)
LEAVE = {"leave": {"ant_1": [2, "terminated"]}, "steps": 2}


def pids(env: PettingZooEnv) -> list[int]:
    assert isinstance(env._copies, worker.Workers)
    return [worker.process.pid for worker in env._copies._workers]


def assert_gone(pid: int) -> None:
    """Ended and reaped."""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("constructor", "arguments", "steps"),
    [("tests.envs.toy.Scripted", LEAVE, 20), ("mpe2.simple_tag_v3.parallel_env", {"max_cycles": 10}, 25)],
)
def test_results_do_not_depend_on_workers(constructor: str, arguments: dict[str, Any], steps: int) -> None:
    played, states = [], []
    for workers in (0, 1, 2):
        env = PettingZooEnv("task", constructor, arguments, num_envs=3, workers=workers)
        for _ in range(2):  # an unfinished run is thrown away by the second reset
            env.reset(itertools.count())
            log = list(play(env, steps))
        played.append(log)
        states.append(env.state_dict())
        env.close()
    assert sum(int(step.done.sum()) for step, _, _ in played[0]) >= 6
    assert_same(played[0], played[1])
    assert_same(played[0], played[2])
    assert_same(states[0], states[2])


def test_a_state_goes_from_one_number_of_workers_to_another() -> None:
    one = PettingZooEnv("task", "tests.envs.toy.Scripted", LEAVE, num_envs=3, workers=2)
    one.reset(itertools.count())
    list(play(one, 11))
    two = PettingZooEnv("task", "tests.envs.toy.Scripted", LEAVE, num_envs=3)
    state, next_seed = one.state_dict(), int(one.state_dict()["next_seed"].max()) + 1
    assert len(set(state["length"].tolist())) > 1
    two.load_state_dict(state, itertools.count(next_seed))
    assert_same(list(play(one, 10)), list(play(two, 10)))
    two.load_state_dict(state, itertools.count(next_seed))
    one.load_state_dict(state, itertools.count(next_seed))
    assert_same(list(play(one, 10)), list(play(two, 10)))
    one.close()


def test_more_workers_than_copies() -> None:
    env = PettingZooEnv("task", "tests.envs.toy.Scripted", num_envs=1, workers=4)
    assert len(pids(env)) == 1
    env.close()


@pytest.mark.parametrize(
    ("how", "account"),
    [
        ("raise", "ArithmeticError: the ants have lost count\n\nIn the worker process:\nTraceback"),
        ("exit", "its worker process ended with exit status 3"),
        ("kill", "its worker process was killed by SIGKILL"),
        ("hang", "its worker process did not answer within 1 s and was killed"),
    ],
)
def test_a_failure_says_where_and_what(how: str, account: str) -> None:
    arguments = {"how": how, "seed": 6, "step": 1}  # copy 2 comes to seed 6: its first episode, 2, is followed by 6
    env = PettingZooEnv("ants", "tests.envs.toy.Faulty", arguments, num_envs=4, workers=2, step_timeout=1.0)
    running = pids(env)
    env.reset(itertools.count())
    began = time.monotonic()
    with pytest.raises(RuntimeError) as failure:
        list(play(env, 10))
    assert time.monotonic() - began < 10
    assert str(failure.value).startswith("ants, copy 2, step 1 of the episode with reset seed 6: " + account)
    for pid in running:
        assert_gone(pid)
    env.close()


def test_a_worker_killed_while_it_waits() -> None:
    env = PettingZooEnv("task", "tests.envs.toy.Scripted", num_envs=4, workers=2)
    env.reset(itertools.count())
    os.kill(pids(env)[1], 9)
    with pytest.raises(RuntimeError, match="task, copies 2 to 3: its worker process was killed by SIGKILL"):
        list(play(env, 2))


def test_a_failure_in_the_first_reset() -> None:
    arguments = {"how": "exit", "seed": 3, "step": 0}
    env = PettingZooEnv("ants", "tests.envs.toy.Faulty", arguments, num_envs=4, workers=2)
    with pytest.raises(RuntimeError, match=r"ants, copy 3, the reset of the episode with reset seed 3: .* status 3"):
        env.reset(itertools.count())


def test_close_ends_the_workers_and_may_be_called_again(capfd: pytest.CaptureFixture[str]) -> None:
    env = PettingZooEnv("task", "tests.envs.toy.Scripted", num_envs=4, workers=2)
    env.reset(itertools.count())
    running = pids(env)
    for _ in range(2):
        env.close()
    for pid in running:
        assert_gone(pid)
    assert capfd.readouterr() == ("", "")


def test_workers_that_are_forgotten_end() -> None:
    env = PettingZooEnv("task", "tests.envs.toy.Scripted", num_envs=2, workers=2)
    running = pids(env)
    del env
    gc.collect()
    patience = time.monotonic() + 20
    while running and time.monotonic() < patience:
        running = [pid for pid in running if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    assert not running


@pytest.mark.parametrize("end", ["os._exit(7)", "os.kill(os.getpid(), 9)", "raise SystemExit"])
def test_workers_end_with_their_parent(end: str, tmp_path: Path) -> None:
    """They hold the stderr that `subprocess.run` reads to its end, so that it returns only when they are gone."""
    (tmp_path / "mine.py").write_text("from tests.envs.toy import Scripted\n")  # found in the current folder
    script = (
        "import itertools, os\n"
        "from magail_envs.pettingzoo import PettingZooEnv\n"
        "env = PettingZooEnv('task', 'mine.Scripted', num_envs=2, workers=2)\n"
        "env.reset(itertools.count())\n"
        f"{end}\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (7, -9, 0)
    assert done.stderr == ""


def test_a_hung_worker_ends_with_its_parent() -> None:
    script = (
        "import itertools, os, threading, torch\n"
        "from magail_envs.pettingzoo import PettingZooEnv\n"
        "fault = {'how': 'hang', 'seed': 0, 'step': 1}\n"
        "env = PettingZooEnv('task', 'tests.envs.toy.Faulty', fault, workers=1)\n"
        "env.reset(itertools.count())\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), 9)).start()\n"
        "env.step({g.name: torch.zeros(1, g.num_agents, 1, dtype=torch.int64) for g in env.groups})\n"
    )
    root = str(Path(__file__).parents[2])
    # returns only when the worker, which holds its stderr, is gone as well
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9


def test_workers_import_from_where_the_parent_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.envs.toy import Scripted\n")
    monkeypatch.syspath_prepend(tmp_path)
    env = PettingZooEnv("task", "mine.Scripted", workers=1)
    env.reset(itertools.count())
    env.close()


def test_nothing_stays_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "_shared_folder", lambda size: str(tmp_path))
    env = PettingZooEnv("task", "tests.envs.toy.Scripted", num_envs=2, workers=1)
    assert list(tmp_path.iterdir()) == []
    env.reset(itertools.count())
    list(play(env, 3))
    env.close()


def test_a_small_shared_memory_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/dev/shm")
    monkeypatch.setattr(worker.shutil, "disk_usage", lambda path: worker.shutil._ntuple_diskusage(64, 0, 64))
    assert worker._shared_folder(31) == "/dev/shm"
    assert worker._shared_folder(32) is None


def test_a_worker_needs_no_torch() -> None:
    code = (
        "import json, sys, magail_envs.worker; print(json.dumps([m for m in ('torch', 'hydra') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_arguments_that_json_changes_are_refused() -> None:
    for arguments in ({"leave": {0: 1}}, {"leave": print}):
        with pytest.raises(ValueError, match="JSON"):
            PettingZooEnv("task", "tests.envs.toy.Scripted", arguments, workers=1)


def test_no_rendering_from_workers() -> None:
    env = PettingZooEnv("spread", "mpe2.simple_spread_v3.parallel_env", workers=1, render=True)
    env.reset(itertools.count())
    with pytest.raises(ValueError, match="workers=0"):
        env.render()
    env.close()
