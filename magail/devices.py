"""Where tensors live and how torch computes: other devices than the environment's, random states, the compiler."""

from __future__ import annotations

import os
import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from magail.types import BatchedEnv, BatchedEnvWrapper, ByGroup, Step


def sensible_threads() -> int:
    """Half of the cores that this process may use, two at most.

    On two cores that nothing else uses a second thread saves a quarter of the time (benchmarks/results/throughput.md),
    but threads wait for one another, and on a machine shared with others that costs many times what it saves.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, max(1, cores // 2))


def check_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={name} cannot be used here ({reason}); choose cpu, or cuda where there is one"
        ) from None


def on_device(env: BatchedEnv, device: torch.device) -> BatchedEnv:
    """The environment itself where its tensors are on ``device``, else the environment behind `Moved`."""
    return env if env.device == device else Moved(env, device)


class Moved(BatchedEnvWrapper):
    """A batched environment of another device: what it shows goes to ``device``, and actions come back."""

    def step(self, action: ByGroup) -> Step:
        step = self.env.step({name: x.to(self.env.device) for name, x in action.items()})
        self._look()
        return Step(**{field.name: self._move(getattr(step, field.name)) for field in fields(step)})

    def _look(self) -> None:
        self.obs, self.mask = self._move(self.env.obs), self._move(self.env.mask)

    def _move(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        return {name: x.to(self.device) for name, x in value.items()}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators that computing on ``device`` uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go back to `random_state`; a run that changes its device takes what there is."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def compiler_works(device: torch.device) -> bool:
    """Whether ``torch.compile`` can be used on ``device``; warns where it cannot."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever is missing (compiler, headers, Triton), torch raises in ways of its own
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"compile=true has no effect: torch.compile fails on this machine ({reason})", stacklevel=2)
        return False
    return True
