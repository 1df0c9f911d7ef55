"""Playing a policy in an environment: a fixed number of steps to learn from, or whole episodes to judge and record."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from magail.advantage import goes_on
from magail.policy import Acting, Remembering
from magail.types import BatchedEnv, ByGroup, JointTransition, Step, Transition, stack


class Player:
    """Plays a policy in the copies of one environment, and keeps what recurrent actors remember of their episodes.

    One player is for one environment as long as its episodes go on; a new one remembers nothing.
    """

    def __init__(self, policy: Acting) -> None:
        self.policy = policy
        self.memory: ByGroup = {}  # [E, A, H]; empty at the beginning, and always if the policy remembers nothing
        self._remembering = policy if isinstance(policy, Remembering) and policy.recurrent else None

    def step(self, env: BatchedEnv, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup, Step]:
        """Act once in every copy: the actions ``[E, A, U]``, their log-probabilities ``[E, A]``, and what came back."""
        mask = env.mask
        action, log_prob = self.act(env.obs, generator)
        step = env.step(action)
        self.forget(step, mask)
        return action, log_prob, step

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        """Actions ``[E, A, U]`` and their log-probabilities ``[E, A]``; `forget` is due after the step they lead to."""
        if self._remembering is None:
            return self.policy.act(obs, generator)
        action, log_prob, self.memory = self._remembering.act_after(self.memory, obs, generator)
        return action, log_prob

    def forget(self, step: Step, mask: ByGroup) -> None:
        """Forget the episodes that ended in ``step``, before which ``mask`` were alive."""
        self.memory = {
            name: memory * goes_on(step.terminated[name], step.truncated[name], mask[name]).unsqueeze(-1)
            for name, memory in self.memory.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.memory = {name: hidden.to(device) for name, hidden in state["memory"].items()}


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


def collect(env: BatchedEnv, policy: Acting | Player, steps: int) -> tuple[JointTransition, dict[str, float]]:
    """Play on for ``steps`` steps in every copy: the rollout ``[T, E]``, and means over the episodes that ended in it.

    ``train/return`` is the environment's return per agent, for logs only. A recurrent policy remembers episodes that
    began in earlier rollouts only through a `Player`.
    """
    player = policy if isinstance(policy, Player) else Player(policy)
    memory, transitions, returns, lengths = player.memory, [], [], []
    for _ in range(steps):
        obs, mask = env.obs, env.mask
        action, log_prob, step = player.step(env)
        transitions.append(_transition(obs, mask, action, log_prob, step))
        returns.append(torch.cat(list(step.episode_return.values()), -1)[step.done].mean(-1))
        lengths.append(step.episode_length[step.done])
    ended, rollout = torch.cat(returns), stack(transitions)
    rollout.memory = memory
    if not len(ended):
        return rollout, {}
    info = {"train/return": ended.mean().item(), "train/episode_length": torch.cat(lengths).double().mean().item()}
    return rollout, info


def play_episodes(
    env: BatchedEnv, policy: Acting, seeds: Sequence[int], generator: torch.Generator, record: bool = False
) -> tuple[torch.Tensor, list[JointTransition]]:
    """Play one episode from each reset seed: returns ``[N, all agents]``, and the episodes ``[T]`` if ``record``.

    ``seeds`` are distinct, and each is played once: copies that are left over play others, which do not count, so that
    short episodes are not favoured. Actions are drawn with ``generator`` alone: training's random numbers are
    untouched.
    """
    wanted = set(seeds)
    assert len(wanted) == len(seeds)
    returns: dict[int, torch.Tensor] = {}
    episodes: dict[int, JointTransition] = {}
    unfinished: list[list[JointTransition]] = [[] for _ in range(env.num_envs)]
    player = Player(policy)
    env.reset(itertools.chain(seeds, itertools.count(max(seeds) + 1)))
    while len(returns) < len(seeds):
        obs, mask = env.obs, env.mask
        action, log_prob, step = player.step(env, generator)
        if record:
            transition = _transition(obs, mask, action, log_prob, step)
            for copy, steps in enumerate(unfinished):
                steps.append(transition[copy])
        for copy in step.done.nonzero().flatten().tolist():
            seed = int(step.episode_seed[copy])
            if seed in wanted:
                returns[seed] = torch.cat([x[copy] for x in step.episode_return.values()])
                if record:
                    episodes[seed] = stack(unfinished[copy])
            unfinished[copy] = []
    return torch.stack([returns[seed] for seed in seeds]), [episodes[seed] for seed in seeds] if record else []
