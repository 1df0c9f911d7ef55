"""What the benchmarks that train have in common: runs that are not repeated, demonstrations, means over seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import say
from magail.logger import read_metrics
from magail.statistics import mean_interval

QUIET = ["threads=1", "logger.mode=disabled"]
SHORT = [*QUIET, "evaluation.every=50", "evaluation.final_episodes=500", "evaluation.video_episodes=0"]
BRIEF = [*SHORT, "env.mpe2.workers=0"]  # for the particle worlds
FRESH = 9_000_000  # first initial state of tables; recipes were chosen on those from 1,000,000 and 5,000,000 on
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
AT_WORK: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # on a folder, which two threads may ask for
EXPERTS = {"simple_tag": ["algorithm=rl", "env=simple_tag", "iterations=600", "evaluation.every=100"]}  # of ablation.md
AS_THEY_ARE = [  # demonstrations seen as they are, and cloned into small networks in fewer steps
    "symmetries=false",
    "bc.steps=3000",
    "bc.learning_rate=1e-3",
    "bc.weight_decay=0.3",
    "generator.policy.hidden_sizes=[64,64]",
]
ON_REWARDS = ["generator.learning_rate=7e-4", "generator.final_learning_rate_fraction=0.1"]  # PPO's, not for cloning


def train(words: Sequence[str], folder: Path, brief: Sequence[str] = BRIEF) -> bool:
    """Run `magail.train` in ``folder``, or go on with it, unless that is done; whether it came to its end."""
    results = folder / "results.json"
    with AT_WORK[folder]:
        if not results.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "magail.train", *brief, *words, f"hydra.run.dir={folder}"]
            with (folder / "output.txt").open("w") as output:
                subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, env=ONE_THREAD)
    return results.exists()


def trained(words: Sequence[str], folder: Path, brief: Sequence[str]) -> Path | None:
    """``folder`` after `train`; None, which is said, where that failed."""
    if train(words, folder, brief):
        return folder
    say(f"{' '.join(words)}: failed, see {folder}/output.txt")
    return None


def outcome(words: Sequence[str], folder: Path, brief: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What `train` left: every policy's results, and the last line of the metrics; None where it failed."""
    if trained(words, folder, brief) is None:
        return None
    return json.loads((folder / "results.json").read_text())["policies"], read_metrics(folder)[-1]


def demonstrations_of(task: str, runs: Path) -> list[str]:
    """What makes a run imitate 50 demonstrations of the task's expert, or of one of `EXPERTS`, trained first."""
    expert = []
    if task in EXPERTS:
        folder = runs / "experts" / task
        if not train(EXPERTS[task], folder):
            sys.exit(f"the expert of {task} failed: see {folder}/output.txt")
        expert = [f"env.expert={folder}"]
    path = runs / f"{task}.npz"
    if not path.exists():
        command = [sys.executable, "-m", "magail.record", f"env={task}", "episodes=50", f"output={path}", *expert]
        subprocess.run(command, check=True)
    return [f"demonstrations.path={path}", *expert]


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
    """Mean and its 95 % interval."""
    mean, low, high = mean_interval(np.array(values))
    return f"{mean:.{digits}f}" + ("" if np.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def of_each(values: Sequence[float], digits: int = 3) -> str:
    """The value of each seed."""
    return ", ".join(f"{value:.{digits}f}" for value in values)
