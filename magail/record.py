"""Write demonstrations: ``python -m magail.record env=simple_spread episodes=100 output=demonstrations.npz``.

``checkpoint=`` records another policy than the environment's shipped expert: a run folder, a .pt or .safetensors file
of one, a .zip of stable-baselines3, the dotted path of a function ``(observation, agent) -> action``, or several, in
a list, of which one is drawn for each episode.

    python -m magail.record env=hopper from=minari from.path=mujoco/hopper/expert-v0

converts a file of another library instead of playing (conf/from), and ``to=minari`` writes a Minari dataset (conf/to).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from magail.config import MOST, RecordConfig, build, conform, one_clear_message, plain
from magail.demonstrations import Demonstrations
from magail.distributions import action_head
from magail.evaluate import expert_policy
from magail.experts import Source, load_expert
from magail.experts import most_likely as most_likely_actions
from magail.policy import Acting
from magail.ranges import check_range
from magail.rollout import play_episodes
from magail.types import BatchedEnv

PACKAGES = ("magail", "torch", "numpy", "gymnasium", "pettingzoo", "mpe2", "supersuit")


def record(
    env: BatchedEnv, policy: Acting, seeds: Sequence[int], generator: torch.Generator, metadata: dict[str, Any]
) -> Demonstrations:
    """Play one episode from each reset seed and keep them, with the packages' versions and the mean return."""
    returns, episodes = play_episodes(env, policy, seeds, generator, record=True)
    for group in env.groups:
        head = action_head(group.action_space, group.num_agents)
        for episode in episodes:
            played = episode.groups[group.name]
            played.action = head.executed(played.action)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    metadata = metadata | {"versions": versions, "mean_return": returns.mean().item()}
    return Demonstrations.from_episodes(env.groups, episodes, seeds, metadata)


def record_expert(
    env_cfg: DictConfig, env: BatchedEnv, episodes: int, seed: int, most_likely: bool, checkpoint: Source | None = None
) -> Demonstrations:
    """Record ``episodes`` of the expert, with reset seeds of their own for every ``seed``.

    Raises:
        ValueError: the environment ships no expert and no checkpoint is given.
    """
    policy = load_expert(checkpoint, env.groups) if checkpoint is not None else expert_policy(env_cfg, env)
    if policy is None:
        raise ValueError(
            f"env={env_cfg.name} ships no expert: give demonstrations.path=FILE, or train an expert with "
            f"`python -m magail.train env={env_cfg.name} algorithm=rl` and point env.expert at its run folder"
        )
    source = checkpoint or env_cfg.expert
    # every seed has a block of 2^20 reset seeds for itself, above those of evaluations
    seeds = [(seed + 16) * 2**20 + i for i in range(episodes)]
    metadata = {
        "env": plain(env_cfg.evaluate),
        "expert": source if isinstance(source, str) else list(source),
        "most_likely": most_likely,
    }
    acting = most_likely_actions(policy) if most_likely else policy
    return record(env, acting, seeds, torch.Generator().manual_seed(seed), metadata)


@hydra.main(version_base="1.3", config_path="pkg://magail_conf", config_name="record")
def main(cfg: DictConfig) -> None:
    torch.set_num_threads(1)
    with one_clear_message():
        check_overrides(HydraConfig.get().overrides.task)
        write(cfg)


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `ValueError` for what says how to play where a file is to be converted."""
    names = {word.partition("=")[0] for word in overrides}
    ignored = names & {"checkpoint", "episodes", "seed", "most_likely"}
    if "from" in names and ignored:
        raise ValueError(f"from= converts a file, and {min(ignored)}= says how to play instead: leave one of them out")


def write(cfg: DictConfig) -> None:
    """Write the demonstrations that ``cfg`` asks for, and print what they are."""
    with open_dict(cfg):
        file = cfg.pop("from", None)
    conform(cfg, RecordConfig)
    check_range({"episodes": cfg.episodes}, 1)
    check_range({"seed": cfg.seed}, 0, MOST)
    save = build(cfg.to, output=cfg.output)
    with closing(build(cfg.env.evaluate)) as env:
        if file:
            demonstrations = build(file, groups=env.groups)
        else:
            demonstrations = record_expert(cfg.env, env, cfg.episodes, cfg.seed, cfg.most_likely, cfg.checkpoint)
    save(demonstrations)
    mean = demonstrations.returns().mean().item()
    print(f"{cfg.output}: {len(demonstrations)} episodes, {demonstrations.num_steps} steps, mean return {mean:.2f}")


if __name__ == "__main__":
    main()
