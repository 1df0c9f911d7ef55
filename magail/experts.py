"""Whoever can demonstrate: policies of ours, stable-baselines3's, any function, and several of them in turn."""

from __future__ import annotations

import base64
import copy
import importlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from magail.demonstrations import no_choice
from magail.files import locate
from magail.formats import pickles
from magail.formats.episodes import flat_action, unflat_obs
from magail.policy import Acting, MostLikely, Policy, load_policy
from magail.population import Population
from magail.types import AgentGroup, ByGroup

Source = str | Sequence[str]
"""What `load_expert` takes."""

_DOTTED = re.compile(r"[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)+")
_OURS = (".pt", ".safetensors")
_ADMITTED = re.compile(
    r"(stable_baselines3|sb3_contrib)(\.\w+)*\.policies|torch\.nn\.modules\.activation|torch\.optim\.\w+"
)


def load_expert(source: Source, groups: Sequence[AgentGroup]) -> Acting:
    """The policy that ``source`` names.

    Args:
        source: a run folder, a checkpoint (.pt) or a .safetensors of one; a .zip that stable-baselines3 saved; the
            dotted path of a function (`FunctionPolicy`); or several of those (`Population`).

    Raises:
        ValueError: there is none, or it does not fit the groups.
    """
    if not source:
        raise ValueError("nobody is named who plays: name a run folder or another policy, or leave that key out")
    if not isinstance(source, str | Sequence):
        raise ValueError(f"{source}: who plays is named by a path; write a folder of that name as ./{source}")
    if not isinstance(source, str):
        return Population([load_expert(one, groups) for one in source])
    path = locate(source)
    if path.suffix == ".zip":
        return StableBaselinesPolicy(path, groups)
    if _DOTTED.fullmatch(source) and path.suffix not in _OURS and not path.exists():
        return FunctionPolicy(_function(source), groups)
    return load_policy(path, groups)


def most_likely(policy: Acting) -> Acting:
    """``policy`` with its most likely actions, where it has them; others play as they do."""
    if isinstance(policy, Population):
        return policy.each(most_likely)
    if isinstance(policy, Policy):
        return MostLikely(policy)
    if isinstance(policy, StableBaselinesPolicy):
        return policy.most_likely()
    return policy


def moved(policy: Acting, device: torch.device) -> Acting:
    """``policy``, copied, to play on a ``device``; who is not of networks of ours plays where it is."""
    if isinstance(policy, Population):
        return policy.each(lambda one: moved(one, device))
    return copy.deepcopy(policy).to(device) if isinstance(policy, Policy) else policy


class FunctionPolicy:
    """A function ``(observation, agent) -> action``, asked for every agent and copy by itself.

    ``observation`` and ``action`` are as the agent's spaces have them, ``agent`` is its name. What it does is taken as
    certain: log-probabilities are 0. Of agents that are not alive it is asked too, where zeros are an observation.

    Raises:
        ValueError: (`act`) an action that is not of the agent's space. Numbers beyond a box's bounds are left to who
            plays, as those of other policies are.
    """

    def __init__(self, function: Callable[[Any, str], Any], groups: Sequence[AgentGroup]) -> None:
        self.function, self.groups = function, tuple(groups)

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        action = {
            g.name: torch.stack([self._of_agent(g, i, obs[g.name][:, i]) for i in range(g.num_agents)], 1)
            for g in self.groups
        }
        return action, _certain(action)

    def _of_agent(self, group: AgentGroup, index: int, obs: Tensor) -> Tensor:
        """``[E, U]`` from ``[E, O]``."""
        agent, space = group.agents[index], group.observation_space
        seen = _seen(space, obs)
        action = torch.zeros(len(obs), group.action_dim, dtype=group.action_dtype)
        for row in seen.nonzero().flatten().tolist():
            chosen = self.function(_single(unflat_obs(space, obs[row, None].numpy())), agent)
            action[row] = self._checked(group, agent, chosen)
        return action

    def _checked(self, group: AgentGroup, agent: str, chosen: Any) -> Tensor:
        """``[U]``."""
        space = group.action_space
        try:
            action = torch.from_numpy(flat_action(space, np.asarray(chosen)[None])).reshape(group.action_dim)
            if not isinstance(space, spaces.Box) and no_choice(space, action).any():
                raise ValueError("there is no such choice")
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"the expert's function gave {agent!r} the action {chosen!r}, which is not of {space} ({error}): it "
                "takes (observation, agent) and returns an action of the agent's space"
            ) from error
        return action


def _seen(space: spaces.Space[Any], obs: Tensor) -> Tensor:
    """Which rows of ``obs [N, O]`` are observations of the space ``[N]``; those of agents not alive are zeros."""
    try:
        spaces.unflatten(space, np.zeros(obs.shape[-1], np.float32))
        return torch.ones(len(obs), dtype=torch.bool)
    except ValueError:  # there is a choice among several in it, of which one is 1
        return obs.any(-1)


def _single(values: Any) -> Any:
    """The first row of arrays, or of containers of arrays."""
    if isinstance(values, dict):
        return {key: _single(value) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(map(_single, values))
    return values[0]


def _certain(action: ByGroup) -> ByGroup:
    return {name: torch.zeros(x.shape[:-1]) for name, x in action.items()}


def _function(source: str) -> Callable[[Any, str], Any]:
    module, _, name = source.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{source}: neither a file nor a function that can be imported ({error}); give a run folder, a .pt, "
            ".safetensors or .zip, or the dotted path of a function in a package or in the current folder"
        ) from error
    if not callable(function):
        raise ValueError(f"{source}: not a function but {function!r}; give one that takes (observation, agent)")
    return function


class StableBaselinesPolicy:
    """A policy that stable-baselines3 or sb3-contrib saved, for every agent of the only group.

    Nothing in the file is executed: the policy is built anew from what its JSON says and takes the file's weights. Of
    pickled objects only those libraries' policy classes and torch's activations and optimizers are admitted, by name.

    Raises:
        ValueError: stable-baselines3 is not installed, the file cannot be read safely, holds a recurrent policy or one
            for other spaces, or there are several groups.
    """

    def __init__(self, path: Path, groups: Sequence[AgentGroup]) -> None:
        if len(groups) > 1:
            raise ValueError(
                f"{path}: one policy for the groups {[group.name for group in groups]}, whose agents differ: give the "
                "dotted path of a function that plays all of them"
            )
        (self.group,) = groups
        self.policy, self.gsde = _stable_baselines_policy(path, self.group)
        self.deterministic = False

    def most_likely(self) -> StableBaselinesPolicy:
        """The same one, without the noise of exploration."""
        other = copy.copy(self)
        other.deterministic = True
        return other

    def act(self, obs: ByGroup, generator: torch.Generator | None = None) -> tuple[ByGroup, ByGroup]:
        """Log-probabilities are 0: what it does is taken as certain."""
        rows = obs[self.group.name].flatten(0, 1)  # [E * A, O]
        seen = _seen(self.group.observation_space, rows)
        with torch.random.fork_rng(devices=[]):  # it draws from torch's own random numbers
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            if self.gsde:
                self.policy.reset_noise(int(seen.sum()))  # of gSDE, which it keeps for whole rollouts in training
            played, _ = self.policy.predict(
                unflat_obs(self.group.observation_space, rows[seen].numpy()), deterministic=self.deterministic
            )
        chosen = torch.zeros(len(rows), self.group.action_dim, dtype=self.group.action_dtype)
        chosen[seen] = torch.from_numpy(flat_action(self.group.action_space, played))
        action = {self.group.name: chosen.unflatten(0, obs[self.group.name].shape[:2])}
        return action, _certain(action)


def _stable_baselines_policy(path: Path, group: AgentGroup) -> tuple[Any, bool]:
    """The policy, and whether its noise is that of gSDE."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; check the path")
    try:
        import stable_baselines3  # noqa: F401  an extra
    except ImportError as error:
        raise ValueError(f"{path}: playing it takes stable-baselines3: pip install 'magail[sb3]'") from error
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
        policy_class, arguments = _decoded(data["policy_class"]), _decoded(data["policy_kwargs"])
        acts_in = [data["action_space"].get(side) for side in ("low", "high")]  # the bounds, printed
    except pickles.Refused as error:
        raise ValueError(f"{path}: refused, since it {error}") from error
    except Exception as error:  # over damaged bytes zipfile, json and torch raise a dozen types
        raise ValueError(
            f"{path}: not a model that stable-baselines3 saved, or damaged ({type(error).__name__}: {error})"
        ) from error
    box = group.action_space
    if isinstance(box, spaces.Box) and None not in acts_in and acts_in != [str(box.low), str(box.high)]:
        raise ValueError(
            f"{path}: it acts from {acts_in[0]} to {acts_in[1]}, and the environment's agents in {box}; choose the "
            "environment that it was trained on"
        )
    if "Recurrent" in policy_class.__name__:
        raise ValueError(f"{path}: a recurrent policy remembers its episode; give a function that plays it")
    if data.get("use_sde"):
        arguments = arguments | {"use_sde": True}
    try:
        with torch.random.fork_rng(devices=[]):  # first weights, which the file's replace, and the noise of gSDE
            torch.manual_seed(0)
            spaces_of = (_channels_first(group.observation_space), group.action_space)
            policy = policy_class(*spaces_of, lambda _: 0.0, **arguments)
        policy.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{path}: its weights do not fit {group.observation_space} and {group.action_space}; choose the "
            f"environment that it was trained on ({str(error).splitlines()[-1].strip()})"
        ) from error
    policy.set_training_mode(False)
    return policy, bool(data.get("use_sde"))


def _channels_first(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """What stable-baselines3 makes of images before its networks see them."""
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
    from stable_baselines3.common.vec_env import VecTransposeImage

    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


class _Name(NamedTuple):
    """What stands for a class while a pickle is read: it can neither be called nor changed."""

    module: str
    name: str


def _decoded(item: Any) -> Any:
    """A value of the file's JSON: as it is, or pickled."""
    if not (isinstance(item, dict) and ":serialized:" in item):
        return item
    return _with_classes(pickles.loads(io.BytesIO(base64.b64decode(item[":serialized:"])), _named))


def _with_classes(value: Any) -> Any:
    """``value`` with the classes that its names stand for."""
    if isinstance(value, _Name):
        return _admitted_class(value)
    if isinstance(value, dict):
        return {key: _with_classes(x) for key, x in value.items()}
    return [_with_classes(x) for x in value] if isinstance(value, list) else value


def _named(module: str, name: str) -> _Name:
    if not _ADMITTED.fullmatch(module):
        raise _refused(module, name)
    return _Name(module, name)


def _admitted_class(name: _Name) -> type:
    found = getattr(importlib.import_module(name.module), name.name, None)
    if not isinstance(found, type):
        raise _refused(*name)
    return found


def _refused(module: str, name: str) -> pickles.Refused:
    return pickles.Refused(
        f"asks for {module}.{name}: beside the policies of stable-baselines3 only torch's activations and optimizers "
        "are admitted, since anything else could run code; if you trust the file, load it in a function of your own "
        "and give that function's dotted path"
    )
