"""What several verbs ask for in the same words: the model, where to compute, where to write."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpa4sim.errors import ConfigError

if TYPE_CHECKING:
    from dpa4sim.potential import Potential


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, --branch, --device and --dtype."""
    parser.add_argument(
        "model", metavar="MODEL", help="a released name, a .safetensors file or a DeePMD-kit .pt"
    )
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="precision [float32]"
    )


def open_model(args: argparse.Namespace) -> Potential:
    """The potential that `add_model` asked for.

    Raises:
        ConfigError: the device is not there.
        ModelError: the model cannot be used.
    """
    from dpa4sim.potential import load

    check_device(args.device)
    return load(args.model, branch=args.branch, device=args.device, dtype=args.dtype)


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: PyTorch does not know it, or this machine does not have it.
    """
    import torch

    valid = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used. Valid here: {', '.join(valid)}."
        ) from error


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Before any work: can this file be written?

    Raises:
        ConfigError: its folder does not exist, or the name is a folder or has another suffix.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"{path} should end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the name of a file.")
    if not path.parent.is_dir():
        raise ConfigError(
            f"There is no folder {path.parent} to write {path.name} in. Make it first."
        )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A partial file beside `path` that takes its name in the end, and vanishes on an error."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
