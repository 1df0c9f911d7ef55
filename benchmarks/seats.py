"""Competitive tasks: how well a policy fills the seats of one side while the expert fills the others."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from omegaconf import OmegaConf

from magail.config import build
from magail.experts import load_expert
from magail.opponents import against
from magail.policy import Acting, RandomPolicy
from magail.rollout import play_episodes
from magail.statistics import normalized_score

EPISODES = 1000


def seat_scores(run_dir: Path) -> dict[str, float]:
    """Of a run's policy, in each group's seats: 0 as random play there, 1 as the expert, whose opponents are the same.

    Means over `EPISODES` reset seeds of evaluation, of the group's own return.
    """
    cfg = OmegaConf.load(run_dir / "config.yaml")
    seed = cfg.evaluation.seed
    with closing(build(cfg.env.train)) as env:
        scores = {}
        for group in env.groups:
            seat = against(env, {g.name: cfg.env.expert for g in env.groups if g is not group}, seed)
            players: dict[str, Acting] = {
                "random": RandomPolicy([group]),
                "policy": load_expert(str(run_dir), [group]),
                "expert": load_expert(cfg.env.expert, [group]),
            }
            returns = {}
            for name, player in players.items():
                of_all, _ = play_episodes(
                    seat, player, range(seed, seed + EPISODES), torch.Generator().manual_seed(seed)
                )
                returns[name] = of_all.mean(-1).numpy()
            scores[group.name], *_ = normalized_score(returns["policy"], returns["expert"], returns["random"])
    return scores
