"""Does a reward that AIRL has learned teach a new policy, also where actions do the opposite?

    python -m benchmarks.reward_transfer --seeds 0 1 2 --runs outputs/transfer \\
        --output benchmarks/results/reward_transfer.md

imitates 500 demonstrations of simple_spread by AIRL and keeps the reward that it learned; then trains new policies on
that reward alone, from random weights, in the same world and in one where every push goes the other way. Beside them
stand policies trained as long on the true reward, and the imitator itself put into the other world. Scores are
normalised returns: 0 random, 1 the expert in its own world, means over 500 initial states that no demonstration has.

The second table is about the learned reward itself: Pearson's correlation with the true one over the steps of 200
episodes, played at random, by the expert, and both together.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.tables import machine, say, table
from benchmarks.trainings import AS_THEY_ARE, ON_REWARDS, of_each, over_seeds, train
from magail.advantage import correlation
from magail.discriminators.learned import LearnedReward
from magail.files import locate
from magail.policy import Acting, RandomPolicy, load_policy
from magail.rollout import play_episodes
from magail.statistics import normalized_score
from magail.types import ByGroup, concatenate
from magail_envs.particle.simple_spread import SimpleSpread

EXPERT = "pkg://magail_envs.experts/simple_spread.safetensors"
SEEDS = range(1_000_000, 1_000_500)  # of evaluation
AIRL = [
    *AS_THEY_ARE,
    "algorithm=airl",
    "discriminator.prior.inputs=[obs]",  # a reward of the state alone can mean the same elsewhere
    "discriminator.replay=100",  # of all rounds: the reward must stay right where the imitator no longer goes
    "start_from_demonstrations=0",
    "demonstrations.count=500",
    "bc.steps=0",
    "bc.coefficient=0",
    "iterations=100",
    *ON_REWARDS,
]
RL = [*AS_THEY_ARE, "algorithm=rl", "iterations=150", *ON_REWARDS]


class OppositeSpread(SimpleSpread):
    """simple_spread where left means right, and down means up."""

    def _control(self, role: str, action: torch.Tensor) -> torch.Tensor:
        return -super()._control(role, action)


WORLDS = {"the same world": SimpleSpread, "opposite actions": OppositeSpread}
OPPOSITE = ["env.batched._target_=benchmarks.reward_transfer.OppositeSpread", "env.evaluate=${env.batched}"]
IN_WORLD = dict(zip(WORLDS, ([], OPPOSITE), strict=True))


def returns(world: type[SimpleSpread], policy: Acting) -> np.ndarray:
    """Mean over the agents, ``[N]``."""
    env = world("simple_spread", {}, 250)
    of_agents, _ = play_episodes(env, policy, SEEDS, torch.Generator().manual_seed(0))
    return of_agents.mean(-1).numpy()


def correlations(reward: LearnedReward) -> dict[str, float]:
    """Of the learned and the true reward, mean over the agents, by who played."""
    env = SimpleSpread("simple_spread", {}, 250)
    players: dict[str, Acting] = {"random": RandomPolicy(env.groups), "expert": load_policy(locate(EXPERT), env.groups)}
    played = {}
    for name, policy in players.items():
        _, episodes = play_episodes(env, policy, SEEDS[:200], torch.Generator().manual_seed(0), record=True)
        played[name] = concatenate(episodes)
    played["both"] = concatenate(list(played.values()))
    found = {}
    for name, steps in played.items():
        learned: ByGroup = reward.reward(steps)
        (group,) = steps.groups
        true, mask = steps.groups[group].env_reward, steps.groups[group].mask
        found[name] = correlation(learned[group].unsqueeze(0), true.unsqueeze(0), mask.unsqueeze(0)).mean().item()
    return found


def rows_of(kinds: Mapping[str, Mapping[str, Sequence[Path]]]) -> list[list[str]]:
    """Scores of policies by kind, by world and by seed."""
    env = SimpleSpread("simple_spread", {}, 1)
    expert = returns(SimpleSpread, load_policy(locate(EXPERT), env.groups))
    random = returns(SimpleSpread, RandomPolicy(env.groups))
    rows = []
    for kind, by_world in kinds.items():
        cells = [kind]
        for world, folders in by_world.items():
            scores = [
                normalized_score(returns(WORLDS[world], load_policy(folder, env.groups)), expert, random)[0]
                for folder in folders
            ]
            cells.append(f"{over_seeds(scores)}: {of_each(scores)}")
        rows.append(cells)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("outputs/transfer"), help="where run folders lie")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)

    def trained(kind: str, seed: int, words: Sequence[str]) -> Path:
        folder = runs / kind.replace(" ", "_") / str(seed)
        if not train([*words, f"seed={seed}"], folder):
            sys.exit(f"{kind}, seed {seed} failed: see {folder}/output.txt")
        say(str(folder))
        return folder

    imitated = [trained("airl", seed, AIRL) for seed in arguments.seeds]

    def reinforced(kind: str, *reward: str) -> dict[str, list[Path]]:
        """Trained in each world, on the reward of the imitator with the same seed where it is a learned one."""
        of_imitator = [[f"reward.checkpoint={folder}"] if reward else [] for folder in imitated]
        return {
            world: [
                trained(f"{kind} {world}", seed, [*RL, *change, *reward, *learned])
                for seed, learned in zip(arguments.seeds, of_imitator, strict=True)
            ]
            for world, change in IN_WORLD.items()
        }

    kinds = {
        "imitated by AIRL in its own world": dict.fromkeys(WORLDS, imitated),
        "trained on what AIRL learned, f": reinforced("f", "reward=learned"),
        "trained on its g alone": reinforced("g", "reward=learned", "reward.shaping=false"),
        "trained on the true reward": reinforced("true"),
    }
    env = SimpleSpread("simple_spread", {}, 1)
    rewards = [
        LearnedReward(env.groups, None, None, checkpoint=str(folder), shaping=False, absorbing=True)
        for folder in imitated
    ]
    found = [correlations(reward) for reward in rewards]
    command = shlex.join(["python", "-m", "benchmarks.reward_transfer", *sys.argv[1:]])
    sections = [
        f"# Rewards that AIRL learned\n\n```\n{command}\n```\n\n{machine()}.",
        "## Policies\n\n" + table(["policy", *WORLDS], rows_of(kinds)),
        "## Correlation of learned and true reward\n\n"
        + table(list(found[0]), [[over_seeds([x[name] for x in found]) for name in found[0]]]),
    ]
    arguments.output.write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
