"""Measures a peer in a virtual environment of its own, made from the requirements beside its script and kept.

    python -m benchmarks.peers.run imitation_gail --venvs build/peers --seconds 30

prints the script's line of JSON. It runs on one thread and one core. Linux only, and Python 3.11 or newer, which the
pinned versions need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
REQUIREMENTS = {  # of each script: NAME.txt, then NAME.no-deps.txt where there is one
    "imitation_gail": "imitation_gail",
    "benchmarl_mappo": "benchmarl_mappo",
    "vmas_env": "benchmarl_mappo",
    "jaxmarl_env": "jaxmarl_env",
    "di_engine_gail": "di_engine_gail",
}


def measure(name: str, venvs: Path, seconds: float) -> dict[str, Any]:
    """What the script ``name`` (a key of `REQUIREMENTS`) printed, e.g. ``steps_per_second``.

    The virtual environment is made in the folder ``venvs`` where it is missing or its requirements have changed.

    Raises:
        subprocess.CalledProcessError: pip or the script failed; what they said is on stderr.
    """
    python = prepare(REQUIREMENTS[name], venvs)
    output = subprocess.run(
        [python, "-m", f"benchmarks.peers.{name}", "--seconds", str(seconds)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=_stay_on_one_core,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def prepare(requirements: str, venvs: Path) -> Path:
    """The Python of the virtual environment with these requirements."""
    venv = venvs.resolve() / requirements
    python, installed = venv / "bin" / "python", venv / "installed.txt"
    files = sorted(FOLDER.glob(f"{requirements}.*txt"), key=_without_dependencies)
    wanted = "".join(path.read_text() for path in files)
    if not installed.exists() or installed.read_text() != wanted:
        _run(sys.executable, "-m", "venv", "--clear", venv)
        for path in files:
            options = ["--no-deps"] if _without_dependencies(path) else []
            _run(python, "-m", "pip", "install", "--quiet", *options, "-r", path)
        installed.write_text(wanted)
    return python


def _without_dependencies(path: Path) -> bool:
    return path.name.endswith(".no-deps.txt")


def _run(*command: str | Path) -> None:
    subprocess.run(command, stdout=sys.stderr, check=True)


def _stay_on_one_core() -> None:
    # XLA and torch have thread pools of their own that OMP_NUM_THREADS does not reach
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=REQUIREMENTS)
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "peers", help="where virtual environments lie")
    parser.add_argument("--seconds", type=float, default=30.0, help="time to measure for")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.name, arguments.venvs, arguments.seconds)))


if __name__ == "__main__":
    main()
