"""Playing a policy in an environment: a fixed number of steps to learn from, or whole episodes to judge and record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from magail.policy import Acting
from magail.types import BatchedEnv, ByGroup, JointTransition, Step, Transition, stack


def _transition(obs: ByGroup, mask: ByGroup, action: ByGroup, log_prob: ByGroup, step: Step) -> JointTransition:
    """One step ``[E]``, zero where an agent is dead."""
    return JointTransition(
        {
            name: Transition(
                obs=obs[name],
                action=action[name] * alive.unsqueeze(-1),
                next_obs=step.next_obs[name],
                terminated=step.terminated[name],
                truncated=step.truncated[name],
                mask=alive,
                log_prob=log_prob[name] * alive,
                env_reward=step.reward[name],
            )
            for name, alive in mask.items()
        }
    )


def collect(env: BatchedEnv, policy: Acting, steps: int) -> tuple[JointTransition, dict[str, float]]:
    """Play on for ``steps`` steps in every copy: the rollout ``[T, E]``, and means over the episodes that ended in it.

    ``train/return`` is the environment's return per agent, for logs only.
    """
    transitions, returns, lengths = [], [], []
    for _ in range(steps):
        obs, mask = env.obs, env.mask
        action, log_prob = policy.act(obs)
        step = env.step(action)
        transitions.append(_transition(obs, mask, action, log_prob, step))
        returns.append(torch.cat(list(step.episode_return.values()), -1)[step.done].mean(-1))
        lengths.append(step.episode_length[step.done])
    ended = torch.cat(returns)
    if not len(ended):
        return stack(transitions), {}
    info = {"train/return": ended.mean().item(), "train/episode_length": torch.cat(lengths).double().mean().item()}
    return stack(transitions), info


def play_episodes(
    env: BatchedEnv, policy: Acting, seeds: Sequence[int], generator: torch.Generator, record: bool = False
) -> tuple[torch.Tensor, list[JointTransition]]:
    """Play one episode from each reset seed: returns ``[N, all agents]``, and the episodes ``[T]`` if ``record``.

    ``seeds`` are distinct. Every episode that began counts, however long, so short ones are not favoured. Actions are
    drawn with ``generator`` alone: training's random numbers are untouched.
    """
    assert len(set(seeds)) == len(seeds)
    returns: dict[int, torch.Tensor] = {}
    episodes: dict[int, JointTransition] = {}
    unfinished: list[list[JointTransition]] = [[] for _ in range(env.num_envs)]
    env.reset(itertools.chain(seeds, itertools.repeat(seeds[-1])))
    while len(returns) < len(seeds):
        obs, mask = env.obs, env.mask
        action, log_prob = policy.act(obs, generator)
        step = env.step(action)
        if record:
            transition = _transition(obs, mask, action, log_prob, step)
            for copy, steps in enumerate(unfinished):
                steps.append(transition[copy])
        for copy in step.done.nonzero().flatten().tolist():
            seed = int(step.episode_seed[copy])
            if seed not in returns:
                returns[seed] = torch.cat([x[copy] for x in step.episode_return.values()])
                if record:
                    episodes[seed] = stack(unfinished[copy])
            unfinished[copy] = []
    return torch.stack([returns[seed] for seed in seeds]), [episodes[seed] for seed in seeds] if record else []
