"""Rewards that a discriminator has learned, kept in a file and used to train another policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from magail.discriminators.priors import Centralized, Decentralized, Prior, Single, ZeroSum
from magail.discriminators.shaped import Shaped
from magail.files import read_weights, write_weights
from magail.policy import Policy
from magail.types import AgentGroup, ByGroup, JointTransition

REWARD_FILE = "reward.safetensors"  # in a run folder
PRIORS: dict[str, type[Prior]] = {prior.__name__: prior for prior in (Decentralized, Centralized, Single, ZeroSum)}


def save_reward(path: Path, reward: Prior | Shaped, absorbing: bool) -> None:
    """Write the networks and what rebuilds them as safetensors, atomically; ``absorbing``: also of absorbing steps."""
    prior = reward.g if isinstance(reward, Shaped) else reward
    description = {
        "agents": {group.name: list(group.agents) for group in reward.groups},
        "prior": type(prior).__name__,
        "options": prior.options,
        "discount": reward.discount if isinstance(reward, Shaped) else None,
        "absorbing": absorbing,
    }
    write_weights(path, reward.state_dict(), description)


def load_reward(path: Path, groups: Sequence[AgentGroup], absorbing: bool) -> Prior | Shaped:
    """What `save_reward` wrote, for the agents of ``groups``.

    Raises:
        ValueError: no such file, no learned reward in it, or one for other agents or spaces, or that was learned with
            or without absorbing steps where it is asked for the other.
    """
    if path.is_dir():
        path = path / REWARD_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no learned reward there; give the folder of a run with a discriminator")
    description, weights = read_weights(path, "reward", ("agents", "prior", "options", "discount"))
    options, discount = description["options"], description["discount"]
    if description.get("absorbing", absorbing) != absorbing:  # files of before say nothing
        raise ValueError(
            f"{path}: learned with discriminator.absorbing={not absorbing}, without which it is another reward where "
            f"agents terminate; set that"
        )
    kind = PRIORS.get(description["prior"])
    if kind is None:
        known = ", ".join(PRIORS)
        raise ValueError(f"{path}: a reward under the prior {description['prior']!r}, which is none of {known}")
    agents = {group.name: list(group.agents) for group in groups}
    if description["agents"] != agents:
        raise ValueError(f"{path}: a reward for the agents {description['agents']}, but the environment has {agents}")

    def prior(**inputs: Any) -> Prior:
        return kind(**{**options, **inputs})

    try:
        reward = prior(groups=groups) if discount is None else Shaped(groups, prior, discount)
        reward.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: its weights do not fit the environment's spaces; choose one with the observations and actions "
            f"that it was learned in ({str(error).splitlines()[-1].strip()})"
        ) from error
    return reward.eval()


class FixedReward:
    """What stands in for a discriminator and learns nothing; subclasses have a ``reward(batch)``."""

    def update(self, rollout: JointTransition, demonstrations: None, policy: Policy) -> dict[str, float]:
        return {}

    def report(self, rollout: JointTransition) -> dict[str, float]:
        return {}

    def save(self, run_dir: Path) -> None:
        """There is nothing to keep."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class LearnedReward(FixedReward):
    """Stands in for the discriminator where training is on a reward learned before: it no longer changes.

    Of AIRL's f the policy gets all, or g alone where ``shaping`` is False. Both have the same optimal policies, in a
    changed environment too (Fu et al. 2018, section 5), but g has to be learned to a far higher precision: where one
    step moves little, ``discount * h(s') - h(s)`` is most of f. Of other discriminators the policy gets the logits.
    ``absorbing``: what follows on terminations is rewarded too, for ever; the generator follows suit.

    Raises:
        ValueError: as `load_reward`, or ``shaping`` of a reward that has none.
    """

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        demonstrations: None,
        held_out: None,
        *,
        checkpoint: str | None,
        shaping: bool | None,
        absorbing: bool,
    ) -> None:
        if checkpoint is None:
            raise ValueError("reward=learned needs reward.checkpoint=RUN_FOLDER, of a run with a discriminator")
        learned = load_reward(Path(checkpoint), groups, absorbing)
        if shaping and not isinstance(learned, Shaped):
            raise ValueError(f"{checkpoint}: only AIRL's reward has a shaping term; set reward.shaping=null")
        self.logits = learned.g if isinstance(learned, Shaped) and shaping is False else learned

    @torch.no_grad()
    def reward(self, batch: JointTransition) -> ByGroup:
        """Rewards ``[T, E, A]`` a group of a rollout ``[T, E]``, or ``[B, A]`` of a batch ``[B]``."""
        rewards = self.logits(batch.flatten())
        return {name: self.logits.sign(name) * x.unflatten(0, batch.batch_shape) for name, x in rewards.items()}
