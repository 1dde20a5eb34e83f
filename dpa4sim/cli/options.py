"""What several verbs ask for in the same words: the model, where to compute, where to write."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa4sim.errors import ConfigError

if TYPE_CHECKING:
    from dpa4sim.direct import DirectModel
    from dpa4sim.potential import Potential
    from dpa4sim.property import PropertyModel


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, --branch, --device and --dtype."""
    parser.add_argument(
        "model", metavar="MODEL", help="a released name, a .safetensors file or a DeePMD-kit .pt"
    )
    parser.add_argument("--branch", help="one of the branches of a model that has several")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="precision [float32]"
    )


def add_speed(parser: argparse.ArgumentParser) -> None:
    """--compile, --kernels and --accuracy."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run the network as one compiled graph: minutes the first time, faster for few and "
        "small structures",
    )
    parser.add_argument(
        "--kernels", default="torch", choices=("torch", "triton"), help="triton: on CUDA [torch]"
    )
    parser.add_argument(
        "--accuracy",
        default="exact",
        choices=("exact", "high", "fast"),
        help="of products of float32 matrices [exact]",
    )


def add_allowance(parser: argparse.ArgumentParser) -> None:
    """--allow-non-conservative."""
    parser.add_argument(
        "--allow-non-conservative",
        action="store_true",
        help="take a model of direct forces, which are not the gradient of its energy",
    )


def open_model(args: argparse.Namespace) -> Any:
    """The potential or the ensemble that `add_model` asked for.

    Raises:
        ConfigError: the device is not there.
        ModelError: the model cannot be used.
    """
    from dpa4sim.ensemble import load

    check_device(args.device)
    asked = {"branch": args.branch, "device": args.device, "dtype": args.dtype}
    speed = {name: vars(args)[name] for name in ("compile", "kernels", "accuracy") if name in args}
    return load(args.model, **asked, **speed)


def open_network(args: argparse.Namespace) -> Potential:
    """The same for verbs that need a single network.

    Raises:
        ConfigError: the device is not there.
        ModelError: the model cannot be used, or is an ensemble.
    """
    from dpa4sim.potential import load

    check_device(args.device)
    return load(args.model, branch=args.branch, device=args.device, dtype=args.dtype)


def open_any_model(args: argparse.Namespace) -> Any:
    """The same as `open_model`, or the model of a property.

    Raises:
        ConfigError: the device is not there, or a setting is not for a property.
        ModelError: the model cannot be used.
    """
    from dpa4sim.property import load_property, predicts_property

    if not predicts_property(args.model, args.branch):
        return open_model(args)
    if args.compile or args.kernels != "torch" or args.accuracy != "exact":
        raise ConfigError(
            f"{args.model} predicts a property, and --compile, --kernels and --accuracy are for "
            "energies. Leave them out."
        )
    check_device(args.device)
    return load_property(args.model, branch=args.branch, device=args.device, dtype=args.dtype)


def open_single_model(args: argparse.Namespace) -> Potential | PropertyModel | DirectModel:
    """One network, of energies, of direct forces or of a property.

    Raises:
        ConfigError: the device is not there.
        ModelError: the model cannot be used, or is an ensemble.
    """
    from dpa4sim.property import load_any

    check_device(args.device)
    return load_any(args.model, branch=args.branch, device=args.device, dtype=args.dtype)


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
