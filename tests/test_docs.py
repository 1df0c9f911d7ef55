"""What docs/extending.md shows is run as it stands there, and what README.md shows of a trained policy."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from magail.files import locate
from tests.test_train import SPREAD, TINY

TEXT = (Path(__file__).parent.parent / "docs/extending.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [text.strip() for language, text in BLOCKS if language == "bash"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page names in their first lines; a later block of the same name goes below the earlier."""
    root = tmp_path_factory.mktemp("extending")
    for language, text in BLOCKS:
        if language != "bash":
            name = re.match(r"# (\S+)", text)[1]
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with (root / name).open("a") as file:
                file.write(text)
    return root


def test_a_trained_policy_plays_in_ones_own_code():
    """As the README shows it, with the shipped expert for a run; random play has -24."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(from pathlib.*?)```", readme, re.DOTALL)
    expert = str(locate("pkg://magail_envs.experts/simple_spread.safetensors"))
    for shown, here in (('"RUN_FOLDER"', repr(expert)), ("observations, *_ =", "observations, rewards, *_ =")):
        assert block.count(shown) == 1
        block = block.replace(shown, here)
    played = {"returned": 0.0}
    exec(f"{block}    returned += sum(rewards.values()) / len(agents)\n", played)
    assert -16 < played["returned"] < -5


def test_the_page_has_what_it_promises():
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.removeprefix("python -m magail.train "))
def test_the_example_trains(command, folder):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "magail.train"]
    options = [word for word in TINY if "a2c" not in command or not word.startswith("generator")]  # it has no epochs
    options += [] if "env=cartpole" in words else SPREAD
    done = subprocess.run(
        [sys.executable, *words[1:], *options], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "magail" in done.stdout
