"""Judging policies on the true environment, by reset seeds that training never uses.

    python -m magail.evaluate env=simple_spread checkpoint=RUN_FOLDER evaluation.final_episodes=1000

prints the returns and normalised scores of a run's last policy (or of a .pt, .safetensors or stable-baselines3 .zip, or
of a function by its dotted path), beside the shipped expert's and random play's. ``opponents`` (`magail.opponents`)
play some of the groups against all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import rich
import torch
from omegaconf import DictConfig

from magail.config import MOST, EvaluateConfig, build, conform, one_clear_message
from magail.experts import Source, load_expert, moved
from magail.experts import most_likely as most_likely_actions
from magail.opponents import against
from magail.policy import Acting, Policy, RandomPolicy
from magail.ranges import check_range
from magail.render import side_by_side
from magail.report import results_table, summarize
from magail.rollout import Player, play_episodes
from magail.statistics import mean_interval
from magail.types import AgentGroup, BatchedEnv


def expert_policy(env_cfg: DictConfig, env: BatchedEnv) -> Acting | None:
    """The environment's expert (`load_expert`); None where there is none.

    Raises:
        ValueError: it cannot be loaded, or is for other agents or spaces than ``env``'s.
    """
    try:
        return load_expert(env_cfg.expert, env.groups) if env_cfg.expert else None
    except ValueError as error:
        raise ValueError(
            f"env.expert={env_cfg.expert} does not fit: {error}; or go on without: env.expert=null"
        ) from error


def returns_against(
    env: BatchedEnv, player: Source | None, opponents: Mapping[str, Source], seeds: range, most_likely: bool = False
) -> np.ndarray:
    """Of each episode the mean return ``[N]`` of the agents that ``player`` plays: all but the ``opponents``' groups.

    ``player`` None is random play; with ``most_likely`` a policy does not draw its actions (opponents always do).
    """
    seat = against(env, opponents, seeds.start)
    policy = moved(RandomPolicy(seat.groups) if player is None else load_expert(player, seat.groups), env.device)
    generator = torch.Generator().manual_seed(seeds.start)
    returns, _ = play_episodes(seat, most_likely_actions(policy) if most_likely else policy, seeds, generator)
    return returns.mean(-1).numpy()


class Evaluator:
    """Plays policies in ``cfg.env.evaluate`` from the same reset seeds, so that returns compare episode by episode."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.options = cfg, cfg.evaluation
        self.env = self._build()
        try:  # now: the report after training is late to find out that it does not fit
            self.expert = expert_policy(cfg.env, self.env)
        except ValueError:
            self.close()
            raise

    def check(self, groups: Sequence[AgentGroup]) -> None:
        """Refuse to judge who learned in another environment.

        Raises:
            ValueError: ``groups`` are others than here.
        """
        if tuple(groups) != tuple(self.env.groups):
            raise ValueError(
                f"training's environment has the agents {_listed(groups)}, evaluation's {_listed(self.env.groups)}: "
                "what env.train and env.evaluate name (arguments, wrappers) must be one task"
            )

    def _build(self, **overrides: Any) -> BatchedEnv:
        return against(build(self.cfg.env.evaluate, **overrides), self.cfg.opponents, self.options.seed)

    def _acting(self, policy: Acting) -> Acting:
        here = moved(policy, self.env.device)
        return most_likely_actions(here) if self.options.most_likely else here

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed)

    def seeds(self, episodes: int) -> range:
        """The first ``episodes`` reset seeds of evaluation."""
        return range(self.options.seed, self.options.seed + episodes)

    def results(self, players: Mapping[str, Source | None]) -> dict[str, Any]:
        """What `summarize` makes of policies by name, on the final episodes; None plays at random.

        Where there are several groups and an "expert", each is judged in every group's seats too, by that group's own
        return and with the expert in the others: who competes shows little in a mean over both sides.
        """
        names, seeds = [group.name for group in self.env.groups], self.seeds(self.options.final_episodes)

        def summary(opponents: Mapping[str, Source]) -> dict[str, Any]:
            options = {"seeds": seeds, "most_likely": self.options.most_likely}
            returns = {name: returns_against(self.env, x, opponents, **options) for name, x in players.items()}
            return summarize(returns, seeds)

        results = summary({})
        if (expert := players.get("expert")) and len(names) > 1:
            for group in names:
                in_seats = summary({name: expert for name in names if name != group})["policies"]
                results["policies"] |= {f"{name} as {group}": numbers for name, numbers in in_seats.items()}
        return results

    def learning_curve(self, policy: Policy) -> dict[str, float]:
        """One point of the learning curve, with the 95 % interval of the mean return."""
        seeds = self.seeds(self.options.episodes)
        returns, _ = play_episodes(self.env, self._acting(policy), seeds, self._generator())
        mean, low, high = mean_interval(returns.mean(-1).numpy())
        episodes = {"eval/episodes": self.options.episodes}
        return {"eval/return": mean, "eval/return_low": low, "eval/return_high": high, **episodes}

    def video(self, policies: Mapping[str, Acting], path: Path) -> Path:
        """Film the policies side by side from the same reset seeds, as a GIF with the episodes one after the other."""
        env = self._build(num_envs=1, workers=0, render=True)
        frames: dict[str, list[np.ndarray]] = {name: [] for name in policies}
        try:
            for seed in self.seeds(self.options.video_episodes):
                films = {name: self._film(env, policy, seed) for name, policy in policies.items()}
                longest = max(map(len, films.values()))
                for name, film in films.items():  # the others wait for the longest episode
                    frames[name] += film + [film[-1]] * (longest - len(film))
        finally:
            env.close()
        side_by_side(frames, path)
        return path

    def _film(self, env: BatchedEnv, policy: Acting, seed: int) -> list[np.ndarray]:
        env.reset(itertools.repeat(seed))
        frames, done, generator, player = [], False, self._generator(), Player(self._acting(policy))
        while not done:
            frames.append(env.render())
            _, _, step = player.step(env, generator)
            done = bool(step.done)
        return frames

    def close(self) -> None:
        self.env.close()


def _listed(groups: Sequence[AgentGroup]) -> str:
    return "; ".join(f"{', '.join(g.agents)} ({g.observation_space}, {g.action_space})" for g in groups)


@hydra.main(version_base="1.3", config_path="pkg://magail_conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    torch.set_num_threads(1)
    with one_clear_message():
        judge(cfg)


def judge(cfg: DictConfig) -> None:
    """Print a table of what the expert, random play and ``cfg.checkpoint`` come to."""
    conform(cfg, EvaluateConfig)
    check_range({"evaluation.final_episodes": cfg.evaluation.final_episodes}, 2)
    check_range({"evaluation.seed": cfg.evaluation.seed}, 0, MOST)
    with closing(Evaluator(cfg)) as evaluator:
        players: dict[str, Source | None] = {"random": None}
        if cfg.env.expert:
            players = {"expert": cfg.env.expert} | players
        if cfg.checkpoint is not None:
            players["policy"] = cfg.checkpoint
        rich.print(results_table(evaluator.results(players)))


if __name__ == "__main__":
    main()
