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

from magail.config import EvaluateConfig, build, conform, one_clear_message
from magail.experts import load_expert, most_likely, moved
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
        return most_likely(here) if self.options.most_likely else here

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed)

    def seeds(self, episodes: int) -> range:
        """The first ``episodes`` reset seeds of evaluation."""
        return range(self.options.seed, self.options.seed + episodes)

    def returns(self, policy: Acting, seeds: Sequence[int]) -> np.ndarray:
        """Return of the episode from each reset seed, mean over the agents, ``[N]``."""
        returns, _ = play_episodes(self.env, self._acting(policy), seeds, self._generator())
        return returns.mean(-1).numpy()

    def learning_curve(self, policy: Policy) -> dict[str, float]:
        """One point of the learning curve, with the 95 % interval of the mean return."""
        mean, low, high = mean_interval(self.returns(policy, self.seeds(self.options.episodes)))
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
    check_range({"evaluation.seed": cfg.evaluation.seed}, 0)
    with closing(Evaluator(cfg)) as evaluator:
        groups = evaluator.env.groups
        policies: dict[str, Acting | None] = {
            "expert": evaluator.expert,
            "random": RandomPolicy(groups),
            "policy": load_expert(cfg.checkpoint, groups) if cfg.checkpoint is not None else None,
        }
        seeds = evaluator.seeds(cfg.evaluation.final_episodes)
        returns = {name: evaluator.returns(policy, seeds) for name, policy in policies.items() if policy is not None}
        rich.print(results_table(summarize(returns, seeds)))


if __name__ == "__main__":
    main()
