"""Decentralized policies: one actor per group, each agent acting on its own observation alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from magail import checkpoint
from magail.advantage import goes_on, masked_mean
from magail.distributions import Distribution, GaussianHead, action_head
from magail.files import locate, read_weights, write_weights
from magail.networks import CHANNELS, Actor, module_dict, obs_normalizer, update_normalizers
from magail.types import AgentGroup, ByGroup, JointTransition, Symmetries, described_symmetries


class Acting(Protocol):
    """Whatever can play: observations ``[E, A, O]`` to actions ``[E, A, U]`` and log-probabilities ``[E, A]``."""

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]: ...


@runtime_checkable
class Remembering(Acting, Protocol):
    """Who may act on what it remembers of an episode: ``recurrent`` numbers (H) an agent, none if that is 0."""

    recurrent: int

    def act_after(
        self, memory: ByGroup, obs: ByGroup, generator: torch.Generator | None = None
    ) -> tuple[ByGroup, ByGroup, ByGroup]:
        """As `act`, after ``memory [E, A, H]`` (empty: of episodes that begin); also the memory after it."""
        ...


class Policy(nn.Module):
    """One `Actor` per group behind a normaliser of observations.

    Images are normalised by their bounds (`obs_normalizer`), other observations by statistics. Where demonstrations are
    at hand the normaliser takes theirs once and keeps them (`fit_normalizer`), so that discriminator and policy look at
    the same fixed features (Orsini et al. 2021, 2106.00672); otherwise they run along with training (`observe`).

    With ``recurrent`` GRU units (H) an agent acts on all that it has observed in its episode. What it remembers,
    ``[..., A, H]`` a group, is kept by who plays (`magail.rollout.Player`), not here: a policy can play in several
    environments. The policy then has distributions for the next step of a memory (`step`) and for sequences
    (`distributions_of_normalized`), but none for lone steps.

    With ``views`` of its environment it acts on its own mean over them: what it says of one situation in G views are G
    opinions, of which the normalised mean in log-probability, the nearest to all of them in mean KL(m, pi in a view),
    errs less than any. A policy that learns has none: its gradients would take G times as long.

    Raises:
        ValueError: an unknown ``activation``, ``box`` or ``encoder``, a ``box`` that needs bounds where there are none,
            ``recurrent`` below 0; a recurrent policy asked about lone steps.
    """

    fixed: Tensor
    views: Symmetries | None = None

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        share_parameters: bool = False,
        box: str = "gaussian",
        encoder: str = "mlp",
        channels: Sequence[int] = CHANNELS,
        recurrent: int = 0,
    ) -> None:
        super().__init__()
        self.groups, self.recurrent = tuple(groups), recurrent
        self.architecture: dict[str, Any] = {
            "hidden_sizes": list(hidden_sizes),
            "activation": activation,
            "share_parameters": share_parameters,
            "box": box,
            "encoder": encoder,
            "channels": list(channels),
            "recurrent": recurrent,
        }
        self.actors = module_dict({g.name: Actor(g, **self.architecture) for g in groups})
        self.normalizers = module_dict({g.name: obs_normalizer(g.observation_space, encoder) for g in groups})
        self.register_buffer("fixed", torch.tensor(False))

    def normalize(self, obs: ByGroup) -> ByGroup:
        return {name: normalizer(obs[name]) for name, normalizer in self.normalizers.items()}

    def observe(self, batch: JointTransition) -> None:
        """Take ``batch``'s observations into the running statistics, unless they are fixed."""
        if not self.fixed:
            update_normalizers(self.normalizers, batch)

    def fit_normalizer(self, demonstrations: JointTransition) -> None:
        """Take the statistics of ``demonstrations`` and keep them."""
        self.observe(demonstrations)
        self.fixed.fill_(True)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Policy:
        """What moves the parameters moves the views along."""
        super()._apply(fn, recurse)
        self.views = self.views and self.views.to(self.fixed.device)
        return self

    def distributions(self, obs: ByGroup) -> dict[str, Distribution]:
        """For ``obs [..., A, O]``; with `views` their mean over them."""
        if self.views is None:
            return self.distributions_of_normalized(self.normalize(obs))
        views, batch = self.views, next(iter(obs.values())).shape[:-2]
        view = torch.arange(views.number, device=self.fixed.device).repeat_interleave(batch.numel())  # [G B]
        repeated = {name: x.flatten(0, -3).repeat(views.number, 1, 1) for name, x in obs.items()}
        in_views = self.distributions_of_normalized(self.normalize(views.see_obs(repeated, view)))

        def mean(name: str) -> Distribution:
            return in_views[name].mean_over_views(
                lambda x: views.action[name].see(x, view),
                lambda x: views.undo[name].see(x, view),
                lambda x: views.undo_places({name: x}, view)[name].unflatten(0, (views.number, *batch)),
            )

        return {name: mean(name) for name in obs}

    def distributions_of_normalized(
        self, obs: ByGroup, memory: ByGroup | None = None, going_on: ByGroup | None = None
    ) -> dict[str, Distribution]:
        """For who needs the normalised observations as well, as the critic does.

        Of a recurrent policy ``obs`` are sequences ``[B, T, A, O]`` after ``memory [B, A, H]``; where ``going_on
        [B, T, A]`` is false an agent begins its next step without memory.
        """
        if not memory:
            return {name: actor(obs[name]) for name, actor in self.actors.items()}
        assert going_on is not None
        return {name: actor.along(obs[name], memory[name], going_on[name]) for name, actor in self.actors.items()}

    def no_memory(self, batch: int) -> ByGroup:
        """The memory ``[B, A, H]`` with which episodes begin; empty if the policy is not recurrent."""
        return {name: actor.gru.nothing(batch) for name, actor in self.actors.items() if actor.gru is not None}

    def step(self, obs: ByGroup, memory: ByGroup) -> tuple[dict[str, Distribution], ByGroup]:
        """Of a recurrent policy: distributions for ``obs [B, A, O]`` after ``memory``, and the memory after it.

        An empty ``memory`` is that of episodes that begin.
        """
        normalized = self.normalize(obs)
        memory = memory or self.no_memory(len(next(iter(obs.values()))))
        steps = {name: actor.step(normalized[name], memory[name]) for name, actor in self.actors.items()}
        return {name: step[0] for name, step in steps.items()}, {name: step[1] for name, step in steps.items()}

    @torch.no_grad()
    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        """Draw actions ``[..., A, U]`` and give their log-probabilities ``[..., A]``."""
        return _chosen(self.distributions(obs), lambda x: x.sample(generator))

    @torch.no_grad()
    def act_after(
        self, memory: ByGroup, obs: ByGroup, generator: torch.Generator | None = None
    ) -> tuple[ByGroup, ByGroup, ByGroup]:
        """As `act`, of a recurrent policy (`step`): also the memory after it."""
        distributions, memory = self.step(obs, memory)
        return *_chosen(distributions, lambda x: x.sample(generator)), memory

    def log_prob(self, batch: JointTransition) -> ByGroup:
        """log pi(a|s) of the actions of lone steps ``[...]`` in nats, ``[..., A]`` a group; 0 for the dead."""
        distributions = self.distributions(batch.field("obs"))
        return {name: distributions[name].log_prob(g.action) * g.mask for name, g in batch.groups.items()}

    def negative_log_likelihood(self, batch: JointTransition) -> Tensor:
        """Mean of -log pi(a|s) over groups, steps and living agents: the behavioural cloning loss, in nats."""
        return torch.stack(list(self.negative_log_likelihoods(batch).values())).mean()

    def negative_log_likelihoods(self, batch: JointTransition) -> ByGroup:
        """Each group's mean of -log pi(a|s) over steps and living agents, in nats.

        ``batch`` is of any shape, or for a recurrent policy of sequences ``[B, T]`` that begin with their episodes.
        """
        obs, memory = batch.field("obs"), self.no_memory(batch.batch_shape[0])
        if memory:
            going_on = {name: goes_on(g.terminated, g.truncated, g.mask) for name, g in batch.groups.items()}
            distributions = self.distributions_of_normalized(self.normalize(obs), memory, going_on)
        else:
            distributions = self.distributions(obs)
        return {n: masked_mean(-distributions[n].log_prob(g.action), g.mask) for n, g in batch.groups.items()}

    def decayed(self, weight_decay: float) -> list[dict[str, Any]]:
        """Its parameters for AdamW, the spreads that are parameters without decay.

        A weight of 0 says nothing, but a spread of exp(0) is half the box: the decay of a few demonstrations would hold
        the actions of a clone as far apart.
        """
        spreads = [actor.head.log_std for actor in self.actors.values() if isinstance(actor.head, GaussianHead)]
        weights = [parameter for parameter in self.parameters() if parameter not in set(spreads)]
        return [{"params": weights, "weight_decay": weight_decay}, {"params": spreads, "weight_decay": 0.0}]

    def description(self) -> dict[str, Any]:
        """What besides weights is needed to rebuild the policy."""
        return {
            "architecture": self.architecture,
            "agents": {g.name: list(g.agents) for g in self.groups},
            "views": self.views and self.views.described(),
        }

    def save(self, path: Path) -> None:
        """Write weights and `description` as safetensors, atomically."""
        write_weights(path, self.state_dict(), self.description())

    def start_from(self, sources: Mapping[str, str]) -> None:
        """Take a group's actor and normaliser from the policy that is named for it (`load_policy`).

        A normaliser that demonstrations fixed there stays fixed here, or the group would not play as it did.

        Raises:
            ValueError: a group that there is not; no such policy, one for other agents or spaces, or one of another
                architecture.
        """
        groups = {group.name: group for group in self.groups}
        if unknown := sources.keys() - groups.keys():
            raise ValueError(f"initial_policy: nobody learns as {min(unknown)}; name some of {', '.join(groups)}")
        for name, source in sources.items():
            other = load_policy(locate(source), [groups[name]])
            if wanted := {key: x for key, x in other.architecture.items() if x != self.architecture[key]}:
                options = [
                    f"generator.policy.{key}={json.dumps(x, separators=(',', ':'))}" for key, x in wanted.items()
                ]
                raise ValueError(f"{source}: of another architecture than is to be trained: set {' '.join(options)}")
            for mine, theirs in ((self.actors, other.actors), (self.normalizers, other.normalizers)):
                mine[name].load_state_dict(theirs[name].state_dict())
            if other.fixed:
                self.normalizers[name].fix()


PolicyOptions = Annotated[dict[str, Any], Policy]


def load_policy(path: Path, groups: Sequence[AgentGroup]) -> Policy:
    """The policy in a run folder (its last one), a checkpoint (.pt), or a file that `Policy.save` wrote.

    It may be of more groups than ``groups``: what plays the others is left out.

    Raises:
        ValueError: no such file, no policy in it, or one for other agents or spaces than ``groups``.
    """
    if path.is_dir():
        path = path / "policy.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no policy there; give a run folder, a checkpoint (.pt) or a .safetensors of a run")
    if path.suffix == ".pt":
        description, weights = _read_checkpoint(path)
    else:
        description, weights = read_weights(path, "policy", ("architecture", "agents"))
    agents = {group.name: list(group.agents) for group in groups}
    if not agents.items() <= description["agents"].items():
        raise ValueError(
            f"{path}: a policy for the agents {description['agents']}, but the environment has {agents}; "
            "choose the environment and arguments that it was trained on"
        )
    left_out = description["agents"].keys() - agents.keys()
    others = tuple(f"{part}.{name}." for part in ("actors", "normalizers") for name in left_out)
    try:
        policy = Policy(groups, **description["architecture"])
        policy.load_state_dict({name: x for name, x in weights.items() if not name.startswith(others)})
        if description.get("views"):  # what was written before there were any has none
            policy.views = described_symmetries(description["views"]).of(agents)
            policy.views.check(groups)
    except (TypeError, KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: its weights do not fit the environment's spaces; choose the environment and arguments that it "
            f"was trained on ({str(error).splitlines()[-1].strip()})"
        ) from error
    return policy


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        generator = checkpoint.load(path)["generator"]
        return generator["description"], generator["policy"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of a run; give one of its checkpoints folder") from error


def _chosen(
    distributions: dict[str, Distribution], choose: Callable[[Distribution], Tensor]
) -> tuple[ByGroup, ByGroup]:
    """Actions ``[..., A, U]`` that ``choose`` takes, and their log-probabilities ``[..., A]``."""
    action = {name: choose(distribution) for name, distribution in distributions.items()}
    return action, {name: distribution.log_prob(action[name]) for name, distribution in distributions.items()}


class MostLikely:
    """A policy that takes the most likely action of another one."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.recurrent = policy, policy.recurrent

    @torch.no_grad()
    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        return _chosen(self.policy.distributions(obs), lambda x: x.mode())

    @torch.no_grad()
    def act_after(
        self, memory: ByGroup, obs: ByGroup, generator: torch.Generator | None = None
    ) -> tuple[ByGroup, ByGroup, ByGroup]:
        distributions, memory = self.policy.step(obs, memory)
        return *_chosen(distributions, lambda x: x.mode()), memory


class RandomPolicy:
    """Uniformly random actions: the zero of the normalised score."""

    def __init__(self, groups: Sequence[AgentGroup]) -> None:
        self.heads = {group.name: action_head(group.action_space, group.num_agents) for group in groups}

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        shapes: dict[str, Any] = {name: obs[name].shape[:-1] for name in self.heads}
        action = {name: head.uniform(tuple(shapes[name]), generator) for name, head in self.heads.items()}
        return action, {name: torch.zeros(shapes[name]) for name in self.heads}
