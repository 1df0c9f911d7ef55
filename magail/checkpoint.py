"""Checkpoints: everything a run needs to go on bit for bit, written atomically, read without pickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from magail.files import replacing


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (containers, numbers, strings, tensors) atomically."""
    with replacing(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, admitting nothing but containers, numbers, strings and tensors.

    Raises:
        ValueError: not a checkpoint, damaged, or with anything else inside.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a readable checkpoint ({reason}); remove it to use an older one") from error


class Checkpoints:
    """The checkpoint files of a run: the newest ``keep``, each named after the iterations that it has behind it."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def _numbered(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.pt") if path.stem.isdigit())

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        save(self.folder / f"{iteration:08d}.pt", state)
        for old in self._numbered()[: -self.keep]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint's state; None where there is none yet."""
        numbered = self._numbered()
        return load(numbered[-1]) if numbered else None
