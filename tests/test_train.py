"""The commands as a user types them, on little budgets."""

import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import stable_baselines3
import torch
from omegaconf import OmegaConf
from PIL import Image

from magail.config import build
from magail.demonstrations import Demonstrations
from magail.evaluate import Evaluator
from magail.policy import RandomPolicy, load_policy
from magail.record import record
from magail.train import tell_of_another_environment, train
from tests.formats.test_pickles import writer
from tests.formats.test_readers import GOLDEN
from tests.test_config import choices, composed

TINY = [
    "threads=1",
    "iterations=2",
    "rollout_steps=8",
    "bc.steps=5",
    "demonstrations.count=3",
    "evaluation.every=2",
    "evaluation.episodes=2",
    "evaluation.final_episodes=2",
    "evaluation.video_episodes=0",
    "discriminator.steps=2",
    "discriminator.batch_size=32",
    "generator.epochs=1",
    "logger.mode=disabled",
]
SPREAD = ["env.mpe2.workers=0", "env.mpe2.num_envs=2", "env.batched.num_envs=4"]


def run(*arguments, cwd, module="magail.train", ok=True, **variables):
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | variables)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_main_job_leaves_all_that_was_promised(tmp_path):
    tiny = [x for x in TINY if not x.startswith(("logger", "evaluation.video"))]
    output = run("env=simple_spread", *tiny, *SPREAD, "evaluation.video_episodes=1", cwd=tmp_path)
    for name in ("expert", "random", "bc", "magail"):
        assert re.search(rf"\b{name}\b.*\(-", output), output
    (folder,) = (tmp_path / "outputs/simple_spread-magail").iterdir()
    assert str(folder) in output.replace("\n", "")
    metrics = pd.read_json(folder / "metrics.jsonl", lines=True)
    assert metrics.iteration.tolist() == [-1, 0, 1]
    assert metrics["discriminator/loss"].notna().sum() == 2
    assert metrics["eval/return"].notna().sum() == 1
    results = json.loads((folder / "results.json").read_text())
    assert list(results["policies"]) == ["expert", "random", "bc", "magail"]
    assert results["policies"]["expert"]["score"] == pytest.approx(1)
    assert Image.open(folder / "curves.png").width > 300
    assert 15 <= Image.open(folder / "video.gif").n_frames <= 25  # equal frames in a row are one
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(list((folder / "checkpoints").glob("*.pt"))) == 2
    assert (folder / "config.yaml").exists()
    loaded = load_policy(folder, build(composed("env=simple_spread", *SPREAD).env.train).groups)
    assert loaded.architecture["hidden_sizes"] == [128, 128]


@pytest.mark.parametrize(
    ("symmetries", "asked", "taken"),
    [("true", "auto", "gated"), ("0", "auto", "gated"), ("false", "auto", "tanh"), ("true", "relu", "relu")],
)
def test_actors_are_gated_where_they_learn_from_several_views(symmetries, asked, taken, tmp_path):
    activation = f"generator.policy.activation={asked}"
    train(composed(*TINY, *SPREAD, f"symmetries={symmetries}", activation), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").generator.policy.activation == taken
    groups = build(composed("env=simple_spread", *SPREAD).env.train).groups
    for name in ("bc.safetensors", "policy.safetensors"):
        assert load_policy(tmp_path / name, groups).architecture["activation"] == taken


@pytest.mark.parametrize(("pressed", "taken"), [(True, "clipped"), (False, "gaussian")])
def test_actors_are_clipped_where_demonstrations_lie_on_bounds(pressed, taken, tmp_path):
    continuous = [*SPREAD, "env.arguments.continuous_actions=true"]
    path = tmp_path / "demonstrations.npz"
    demonstrations_of("simple_push", path, *continuous)
    demonstrations = Demonstrations.load(path, build(composed("env=simple_push", *continuous).env.train).groups)
    if pressed:
        demonstrations.transitions.groups["agent"].action[0, 0, 0] = 1.0
        demonstrations.save(path)
    train(composed("env=simple_push", *TINY, *continuous, f"demonstrations.path={path}", "env.expert=null"), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").generator.policy.box == taken


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        train(composed(*TINY, *SPREAD, f"seed={seed}"), tmp_path / name)
    a, b, c = (pd.read_json(tmp_path / name / "metrics.jsonl", lines=True).drop(columns="seconds") for name in "abc")
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)


def test_a_sweep_runs_every_combination(tmp_path):
    run("-m", "seed=0,1", "discriminator=decentralized,single", *TINY, *SPREAD, "iterations=1", cwd=tmp_path)
    (sweep,) = (tmp_path / "multirun").iterdir()
    configs = [(folder / "config.yaml").read_text() for folder in sorted(sweep.iterdir()) if folder.is_dir()]
    assert len(configs) == 4
    assert sum("Single" in config for config in configs) == 2


def demonstrations_of(name, path, *overrides):
    """Random play, as demonstrations for an environment that ships no expert."""
    cfg = composed(f"env={name}", *overrides)
    env = build(cfg.env.evaluate)
    try:
        generator = torch.Generator().manual_seed(0)
        demonstrations = record(env, RandomPolicy(env.groups), [1, 2, 3], generator, {"env": name})
    finally:
        env.close()
    demonstrations.save(path)
    assert Demonstrations.load(path, env.groups).known_seeds() == [1, 2, 3]


@pytest.mark.parametrize("name", choices("env"))
def test_every_shipped_environment_trains(name, tmp_path):
    path = tmp_path / "demonstrations.npz"
    few = ["env.evaluate.num_envs=2", "env.evaluate.workers=1", "env.train.workers=0"]
    if "batched" in composed(f"env={name}").env:
        few = SPREAD
    arguments = composed(f"env={name}").env.evaluate.arguments
    if "max_cycles" in arguments and arguments.max_cycles > 50:
        few.append("env.evaluate.arguments.max_cycles=50")
    demonstrations_of(name, path, *few)
    train(composed(f"env={name}", *TINY, *few, f"demonstrations.path={path}", "env.expert=null"), tmp_path)
    metrics = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    losses = metrics[["discriminator/loss", "generator/policy_loss", "generator/value_loss"]].dropna()
    assert len(losses) == 2
    assert losses.abs().max().max() < 1e3
    assert list(json.loads((tmp_path / "results.json").read_text())["policies"]) == ["random", "bc", "magail"]


def test_the_original_backend_and_the_compiler_train_too(tmp_path):
    path = tmp_path / "demonstrations.npz"
    demonstrations_of("simple_spread", path, *SPREAD)
    for number, overrides in enumerate((["env.backend=mpe2"], ["compile=true"])):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        train(composed("env=simple_spread", *TINY, *SPREAD, f"demonstrations.path={path}", *overrides), run_dir)
        assert (run_dir / "results.json").exists()


def test_without_a_compiler_training_warns_and_goes_on(tmp_path):
    nothing_there = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    output = run("compile=true", *TINY, *SPREAD, cwd=tmp_path, **nothing_there)
    assert "compile=true has no effect: torch.compile fails on this machine" in output
    assert "Traceback" not in output
    assert list(tmp_path.glob("outputs/*/*/results.json"))


def test_the_precision_of_products_is_torchs_own_setting(tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        train(composed(*TINY, *SPREAD, "matmul_precision=medium"), tmp_path)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ValueError, match="matmul_precision=low must be one of highest, high, medium"):
        train(composed(*TINY, *SPREAD, "matmul_precision=low"), tmp_path)


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"device=abacus cannot be used here"):
        train(composed("env=simple_spread", *TINY, *SPREAD, "device=abacus"), tmp_path)


def test_an_expert_that_does_not_fit_is_refused_before_training(tmp_path):
    tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator"))]
    with pytest.raises(ValueError, match=r"env\.expert=pkg://.* does not fit: .*; or go on without: env\.expert=null"):
        train(composed("env=simple_spread", "algorithm=rl", *tiny, *SPREAD, "env.arguments.N=2"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("prior", [name for name in choices("discriminator") if name not in ("learned", "none")])
@pytest.mark.parametrize("continuous", ["false", "true"])
def test_every_prior_trains_on_a_game_of_two_sides(prior, continuous, tmp_path):
    few = [*SPREAD, f"env.arguments.continuous_actions={continuous}", "env.expert=null"]  # it chooses among moves
    if prior == "environment_reward":
        tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator"))]
        train(composed("env=simple_tag", "algorithm=rl", *tiny, *few), tmp_path)
        return
    path = tmp_path / "demonstrations.npz"
    demonstrations_of("simple_tag", path, *few)
    overrides = [f"discriminator={prior}", f"demonstrations.path={path}", "generator.policy.share_parameters=true"]
    train(composed("env=simple_tag", *TINY, *few, *overrides), tmp_path)
    assert (tmp_path / "results.json").exists()


def test_a_new_policy_trains_on_a_learned_reward_in_a_changed_environment(tmp_path):
    path = tmp_path / "demonstrations.npz"
    demonstrations_of("simple_spread", path, *SPREAD)
    (tmp_path / "airl").mkdir()
    train(composed("algorithm=airl", *TINY, *SPREAD, f"demonstrations.path={path}"), tmp_path / "airl")
    metrics = pd.read_json(tmp_path / "airl/metrics.jsonl", lines=True)
    assert -1 <= metrics["discriminator/reward_correlation"].dropna().item() <= 1
    changed = ["env.arguments.local_ratio=0.1", f"reward.checkpoint={tmp_path}/airl"]
    tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator"))]
    output = run("algorithm=rl", "reward=learned", *tiny, *SPREAD, *changed, cwd=tmp_path)
    assert re.search(r"\brl\b.*\(-", output), output
    output = run("algorithm=rl", "reward=learned", *tiny, *SPREAD, cwd=tmp_path, ok=False)
    assert "error: reward=learned needs reward.checkpoint=RUN_FOLDER" in output


def test_zero_sum_needs_two_sides_and_says_so(tmp_path):
    output = run("discriminator=zero_sum", *TINY, *SPREAD, cwd=tmp_path, ok=False)
    assert "error: the zero-sum prior needs two sides" in output
    assert "Traceback" not in output


def test_one_side_learns_and_is_judged_against_the_other(tmp_path):
    """Self-play, then a best response to its agents, then an imitator of its adversaries against those agents."""
    tiny = [*TINY, "env=simple_push", *SPREAD]
    reinforced = ["algorithm=rl", *(word for word in tiny if not word.startswith(("discriminator", "demonstrations")))]
    run(*reinforced, "hydra.run.dir=both", cwd=tmp_path)
    against = "opponents={agent: both}"
    run(*reinforced, against, "hydra.run.dir=response", cwd=tmp_path)
    groups = build(composed("env=simple_push", *SPREAD).env.train).groups
    assert [group.name for group in load_policy(tmp_path / "response", groups[:1]).groups] == ["adversary"]
    unchanged = ["initial_policy={adversary: both}", "generator.learning_rate=0", "hydra.run.dir=the_same"]
    run(*reinforced, against, *unchanged, cwd=tmp_path)
    run(*reinforced, "initial_policy={adversary: response}", "hydra.run.dir=further", cwd=tmp_path)
    (tmp_path / "response").rename(tmp_path / "elsewhere")
    run("resume=further", "iterations=3", cwd=tmp_path)  # which has all that it took from there
    pair = ["initial_policy={adversary: elsewhere, agent: both}", "iterations=0", "hydra.run.dir=pair"]
    run(*reinforced, *pair, cwd=tmp_path)
    adversary, agent = groups[:1], groups[1:]
    copies = [(adversary, "both", "the_same"), (adversary, "elsewhere", "pair"), (agent, "both", "pair")]
    for of, theirs, taken in copies:
        first, same = (load_policy(tmp_path / folder, of).actors.state_dict() for folder in (theirs, taken))
        assert all(torch.equal(first[name], x) for name, x in same.items())
    run("env=simple_push", "checkpoint=both", "episodes=3", "output=both.npz", module="magail.record", cwd=tmp_path)
    imitation = ["demonstrations.path=both.npz", "demonstrations.held_out=0"]
    output = run(*tiny, *imitation, against, "hydra.run.dir=imitator", cwd=tmp_path)
    assert "magail" in output
    judged = ["env.mpe2.workers=0", "evaluation.final_episodes=2", "checkpoint=imitator", "env.expert=both"]
    output = run("env=simple_push", *judged, against, module="magail.evaluate", cwd=tmp_path)
    assert all(name in output for name in ("expert", "random", "policy"))
    output = run("env=simple_push", *judged, module="magail.evaluate", cwd=tmp_path, ok=False)
    assert "a policy for the agents {'adversary': ['adversary_0']}, but the environment has" in output


def test_several_groups_are_judged_in_each_ones_seats_beside_the_expert_too():
    """As who names the expert as opponent judges them; the expert's own seats make no difference to it."""
    words = ["env=simple_push", *SPREAD, "evaluation.final_episodes=8", "evaluation.most_likely=true"]
    shipped = "pkg://magail_envs.experts/simple_push.safetensors"
    with closing(Evaluator(composed(*words, name="evaluate"))) as evaluator:
        policies = evaluator.results({"expert": shipped, "random": None})["policies"]
        seats = ("", " as adversary", " as agent")
        assert list(policies) == [f"{who}{seat}" for seat in seats for who in ("expert", "random")]
        assert [policies[f"expert{seat}"]["score"] for seat in seats] == [1, 1, 1]
        assert evaluator.results({"random": None})["policies"].keys() == {"random"}  # beside nobody
    for group, other in (("adversary", "agent"), ("agent", "adversary")):
        against = f"opponents={{{other}: '{shipped}'}}"
        with closing(Evaluator(composed(*words, against, name="evaluate"))) as evaluator:
            assert [g.name for g in evaluator.env.groups] == [group]
            alone = evaluator.results({"expert": shipped, "random": None})["policies"]
        assert alone["random"] == policies[f"random as {group}"]


def test_recording_a_run_and_training_on_the_file(tmp_path):
    run("algorithm=bc", *TINY, "iterations=0", *SPREAD, "hydra.run.dir=first", cwd=tmp_path)
    for checkpoint in ("first", "first/checkpoints/00000000.pt", "first/policy.safetensors"):
        arguments = [f"checkpoint={checkpoint}", "episodes=4", "output=demos.npz", *SPREAD]
        output = run(*arguments, cwd=tmp_path, module="magail.record")
        assert "demos.npz: 4 episodes, 100 steps" in output
    arguments = ["checkpoint=first", "evaluation.final_episodes=4", *SPREAD]
    assert re.search(r"policy .* -\d", run(*arguments, cwd=tmp_path, module="magail.evaluate"))
    with_file = ["demonstrations.path=demos.npz", "demonstrations.count=4", "hydra.run.dir=second"]
    run(*TINY, *SPREAD, *with_file, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos.npz", "first", "second"]
    output = run(*TINY, *SPREAD, *with_file, "demonstrations.count=5", "hydra.run.dir=third", cwd=tmp_path, ok=False)
    assert "cannot take 5 demonstrations: there are 4" in output


def test_converting_other_libraries_files_and_training_on_them(tmp_path):
    data = {"MINARI_DATASETS_PATH": str(tmp_path / "datasets")}
    files = {"di_engine": ("di_engine_cartpole.pkl", 40), "imitation": ("imitation_cartpole", 85)}
    for name, (file, steps) in files.items():
        arguments = ["env=cartpole", f"from={name}", f"from.path={GOLDEN / file}", f"output={name}.npz"]
        output = run(*arguments, cwd=tmp_path, module="magail.record")
        assert re.search(rf"{name}.npz: \d+ episodes, {steps} steps, mean return", output), output
    arguments = ["env=cartpole", "from=npz", "from.path=di_engine.npz", "to=minari", "output=cartpole/random-v0"]
    run(*arguments, cwd=tmp_path, module="magail.record", **data)
    arguments = ["env=cartpole", "from=minari", "from.path=cartpole/random-v0", "output=again.npz"]
    run(*arguments, cwd=tmp_path, module="magail.record", **data)
    cartpole = ["env=cartpole", "demonstrations.path=again.npz", "env.evaluate.workers=0", "env.evaluate.num_envs=2"]
    output = run(*TINY, *cartpole, cwd=tmp_path, ok=False)
    assert "error: episodes cannot start where demonstrations started: these carry no reset seeds" in output
    output = run(*TINY, *cartpole, "start_from_demonstrations=0", cwd=tmp_path)
    assert re.search(r"magail .* \d", output), output


def test_another_environments_file_is_told_of(capsys):
    """Its spaces may be the same; a file that notes nothing tells of no difference."""
    there = {"constructor": "gymnasium.make", "arguments": {"id": "HalfCheetah-v5"}}
    here = there | {"arguments": {"id": "Walker2d-v5"}}
    for same in (here, None, "Walker2d-v5"):
        tell_of_another_environment("x.npz", same, here)
    assert not capsys.readouterr().out
    tell_of_another_environment("x.npz", there, here)
    told = "x.npz was recorded with arguments {'id': 'HalfCheetah-v5'}, but env has {'id': 'Walker2d-v5'}"
    assert told in capsys.readouterr().out


def test_a_conversion_of_nothing_says_what_is_missing(tmp_path):
    output = run("env=cartpole", "from=npz", cwd=tmp_path, module="magail.record", ok=False)
    assert "error: there is no value for from.path: give one" in output
    assert "Traceback" not in output


def test_an_experiment_written_for_another_generator_says_which_option_is_in_the_way(tmp_path):
    output = run(*TINY, "experiment=gail", "env=cartpole", "generator=trpo", cwd=tmp_path, ok=False)
    assert "error: TRPO: got an unexpected keyword argument 'learning_rate': something chosen here" in output
    assert "Traceback" not in output


def test_a_file_that_would_run_code_ends_in_one_clear_message(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(writer(tmp_path / "written")))
    arguments = ["env=cartpole", "from=di_engine", "from.path=evil.pkl"]
    output = run(*arguments, cwd=tmp_path, module="magail.record", ok=False)
    assert "error: evil.pkl: refused, since it asks for posix.system" in output
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_an_expert_of_stable_baselines3_is_recorded_judged_and_imitated(tmp_path):
    stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=32, seed=0).save(tmp_path / "expert.zip")
    cartpole = ["env=cartpole", "env.evaluate.workers=0", "env.evaluate.num_envs=2"]
    arguments = [*cartpole, "checkpoint=expert.zip", "episodes=3", "output=demos.npz"]
    assert "demos.npz: 3 episodes" in run(*arguments, cwd=tmp_path, module="magail.record")
    arguments = [*cartpole, "checkpoint=expert.zip", "evaluation.final_episodes=4", "evaluation.most_likely=true"]
    assert re.search(r"policy .* \d", run(*arguments, cwd=tmp_path, module="magail.evaluate"))
    output = run(*TINY, *cartpole, "env.expert=expert.zip", cwd=tmp_path)
    assert re.search(r"expert .* \d", output), output


def test_the_function_that_the_docs_show_is_recorded(tmp_path):
    text = (Path(__file__).parent.parent / "docs/files.md").read_text()
    (block,) = re.findall(r"```python\n(# my_expert.py.*?)```", text, re.DOTALL)
    (tmp_path / "my_expert.py").write_text(block)
    command = block.splitlines()[0].split("python -m magail.record ")[1].split()
    output = run(*command, "env.evaluate.workers=0", cwd=tmp_path, module="magail.record")
    assert float(re.search(r"10 episodes, .* mean return (\S+)", output)[1]) > 100, output


OWN_ENVIRONMENT = """
from pettingzoo import ParallelEnv
from gymnasium import spaces
import numpy as np

class Corridor(ParallelEnv):
    metadata = {"name": "corridor"}
    possible_agents = ["left", "right"]
    def __init__(self, length=4, render_mode=None):
        self.length = length
    def observation_space(self, agent):
        return spaces.Discrete(10)
    def action_space(self, agent):
        return spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        self.agents, self.x = list(self.possible_agents), {"left": 0, "right": 9}
        return dict(self.x), {agent: {} for agent in self.agents}
    def step(self, actions):
        for agent, action in actions.items():
            self.x[agent] = int(np.clip(self.x[agent] + 2 * action - 1, 0, 9))
        self.length -= 1
        met = self.x["left"] >= self.x["right"]
        out = [dict(self.x), {a: float(met) for a in self.agents}, {a: met for a in self.agents},
               {a: self.length <= 0 for a in self.agents}, {a: {} for a in self.agents}]
        if met or self.length <= 0:
            self.agents, self.length = [], 4
        return out
"""
OWN_YAML = """
defaults: [pettingzoo]
name: corridor
evaluate: {constructor: my_corridor.Corridor, num_envs: 2, workers: 1}
"""


def test_a_users_own_environment_from_a_config_dir(tmp_path):
    (tmp_path / "my_corridor.py").write_text(OWN_ENVIRONMENT)
    (tmp_path / "mine/env").mkdir(parents=True)
    (tmp_path / "mine/env/corridor.yaml").write_text(OWN_YAML)
    tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator"))]
    output = run("--config-dir", "mine", "env=corridor", "algorithm=rl", *tiny, cwd=tmp_path)
    assert re.search(r"\brl\b", output)


def test_a_worker_that_dies_ends_the_run_with_an_error(tmp_path):
    dying = OWN_ENVIRONMENT.replace("self.length -= 1\n", "self.length -= 1\n        import os; os._exit(7)\n")
    (tmp_path / "my_corridor.py").write_text(dying)
    (tmp_path / "mine/env").mkdir(parents=True)
    (tmp_path / "mine/env/corridor.yaml").write_text(OWN_YAML)
    tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator"))]
    output = run("--config-dir", "mine", "env=corridor", "algorithm=rl", *tiny, cwd=tmp_path, ok=False)
    assert re.search(r"corridor.*step", output), output
    assert (tmp_path / "outputs").exists()


def own_environment(name, constructor, *overrides):
    base = ["env=pettingzoo", f"env.name={name}", f"env.evaluate.constructor={constructor}"]
    return [*base, "env.evaluate.num_envs=2", "env.evaluate.workers=0", *overrides]


@pytest.mark.parametrize("prior", ["decentralized", "centralized", "single", "zero_sum"])
@pytest.mark.parametrize(
    ("constructor", "arguments"),
    [
        ("tests.envs.toy.Menagerie", {}),  # every kind of space, each a group of its own
        ("tests.envs.toy.Scripted", {"leave": {"ant_0": [2, "terminated"], "bee_0": [1, "vanished"]}}),
    ],
)
def test_every_kind_of_space_and_agents_that_leave(constructor, arguments, prior, tmp_path):
    overrides = [f"+env.evaluate.arguments.{key}={value}".replace("'", "") for key, value in arguments.items()]
    own = own_environment("own", constructor, *overrides)
    path = tmp_path / "demonstrations.npz"
    demonstrations_of("pettingzoo", path, *own)
    sides = ["discriminator.prior.first_side=[dog,cat]"] if prior == "zero_sum" and not arguments else []
    train(composed(*own, *TINY, f"discriminator={prior}", *sides, f"demonstrations.path={path}"), tmp_path)
    metrics = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert metrics["generator/policy_loss"].notna().sum() == 2


def test_a_task_that_cannot_be_drawn_is_reported_all_the_same(tmp_path):
    own = own_environment("own", "tests.envs.toy.Scripted", "evaluation.video_episodes=1")
    tiny = [x for x in TINY if not x.startswith(("demonstrations", "discriminator", "evaluation.video"))]
    output = run(*own, *tiny, "algorithm=rl", f"hydra.run.dir={tmp_path}", cwd=tmp_path, PYTHONPATH=os.getcwd())
    assert "No video: tests.envs.toy.Scripted failed with the arguments" in output.replace("\n", " ")
    assert (tmp_path / "results.json").exists()


def test_training_and_evaluation_are_of_one_task(tmp_path):
    with pytest.raises(ValueError, match=r"training's environment has the agents agent_0, agent_1, agent_2 .*agent_3"):
        train(composed("env=simple_spread", "env.mpe2.arguments={N: 4}", "env.expert=null", *TINY, *SPREAD), tmp_path)
