"""Competitive tasks: what a policy gets in the seats of one side while another fills the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from magail.config import build
from magail.evaluate import returns_against
from magail.experts import Source
from magail.statistics import normalized_score
from magail.types import BatchedEnv

Side = tuple[str, ...]  # the groups that play together

SIDES: dict[str, list[Side]] = {
    "simple_push": [("adversary",), ("agent",)],
    "simple_adversary": [("adversary",), ("agent",)],
    "simple_tag": [("adversary",), ("agent",)],
    "simple_crypto": [("eve",), ("alice", "bob")],
    "simple_world_comm": [("leadadversary", "adversary"), ("agent",)],
}
EPISODES = 1000


def seat_returns(
    env: BatchedEnv, side: Sequence[str], player: Source | None, opponent: Source, seeds: range
) -> np.ndarray:
    """Of each episode the mean return of the agents of a ``side``'s groups ``[N]``; ``player`` None is random play."""
    others = {group.name: opponent for group in env.groups if group.name not in side}
    return returns_against(env, player, others, seeds)


def seat_scores(run_dir: Path) -> dict[str, float]:
    """Of a run's policy, in each group's seats: 0 as random play there, 1 as the expert, whose opponents are the same.

    Means over `EPISODES` reset seeds of evaluation, of the group's own return.
    """
    cfg = OmegaConf.load(run_dir / "config.yaml")
    expert, seeds = cfg.env.expert, range(cfg.evaluation.seed, cfg.evaluation.seed + EPISODES)
    with closing(build(cfg.env.train)) as env:
        scores = {}
        for group in env.groups:
            played, one, zero = (
                seat_returns(env, [group.name], player, expert, seeds) for player in (str(run_dir), expert, None)
            )
            scores[group.name], *_ = normalized_score(played, one, zero)
    return scores
