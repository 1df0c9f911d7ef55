"""Competitive tasks: how well a policy fills the seats of one side while the expert fills the others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from omegaconf import OmegaConf

from magail.config import build
from magail.evaluate import expert_policy
from magail.policy import Acting, RandomPolicy, load_policy
from magail.rollout import play_episodes
from magail.statistics import normalized_score
from magail.types import ByGroup

EPISODES = 1000


class Seated:
    """Policies that play together, one for each group."""

    def __init__(self, by_group: Mapping[str, Acting]) -> None:
        self.by_group = by_group

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        played = {name: policy.act(obs, generator) for name, policy in self.by_group.items()}
        return (
            {name: action[name] for name, (action, _) in played.items()},
            {name: log_prob[name] for name, (_, log_prob) in played.items()},
        )


def seat_scores(run_dir: Path) -> dict[str, float]:
    """Of a run's policy, in each group's seats: 0 as random play there, 1 as the expert, whose opponents are the same.

    Means over `EPISODES` reset seeds of evaluation, of the group's own return.
    """
    cfg = OmegaConf.load(run_dir / "config.yaml")
    with closing(build(cfg.env.train)) as env:
        expert = expert_policy(cfg.env, env)
        assert expert is not None
        policies: dict[str, Acting] = {
            "random": RandomPolicy(env.groups),
            "policy": load_policy(run_dir, env.groups),
            "expert": expert,
        }
        seeds = range(cfg.evaluation.seed, cfg.evaluation.seed + EPISODES)
        scores, first = {}, 0
        for group in env.groups:
            returns = {}
            for name, policy in policies.items():
                seated = Seated({g.name: policy if g is group else expert for g in env.groups})
                generator = torch.Generator().manual_seed(cfg.evaluation.seed)
                of_all, _ = play_episodes(env, seated, seeds, generator)
                returns[name] = of_all[:, first : first + group.num_agents].mean(-1).numpy()
            scores[group.name], *_ = normalized_score(returns["policy"], returns["expert"], returns["random"])
            first += group.num_agents
    return scores
