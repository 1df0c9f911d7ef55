"""Files: where they are, and how to write them so that they are there whole or not at all."""

from __future__ import annotations

import importlib.resources
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place when all has been written; a kill leaves the old one or the new."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file at once or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def parsed(text: str, path: Path) -> Any:
    """The JSON in a file, or in a line of it.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged, or not written by magail ({error})") from error


def write_weights(path: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors, and the JSON that says what they are of, as safetensors, at once or not at all."""
    metadata = {key: json.dumps(value) for key, value in description.items()}
    with replacing(path) as file:
        file.write(safetensors.torch.save(dict(weights), metadata))


def read_weights(path: Path, kind: str, keys: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors that `write_weights` wrote, of a file that should hold a ``kind``.

    Raises:
        ValueError: another file, or a description without one of the ``keys``; it may hold others too.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        description = {key: json.loads(metadata[key]) for key in (*keys, *metadata)}
        return description, safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a {kind} written by magail ({error}); give one that a run wrote") from error


def locate(path: str) -> Path:
    """A path, or ``pkg://package/file`` for a file shipped in an installed package.

    Raises:
        ValueError: no such package is installed.
    """
    if not path.startswith("pkg://"):
        return Path(path)
    package, _, name = path.removeprefix("pkg://").partition("/")
    try:
        return Path(str(importlib.resources.files(package) / name))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path}: {error}; check what is between pkg:// and the next /") from error
