"""The network of a potential as one compiled graph, kept on disk from one process to the next.

Compiling takes minutes, opening what was compiled takes less than a second.  The graph takes any
number of atoms and edges (`export.py`), so that no batch compiles anything again.  A file is bound
to the weights, the precision, the kind of processor and the version of PyTorch: each of them has a
file of its own in

    $DPA4SIM_CACHE, else $XDG_CACHE_HOME/dpa4sim, else ~/.cache/dpa4sim
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpa4sim import __version__
from dpa4sim.errors import ModelError

if TYPE_CHECKING:
    from dpa4sim.potential import Potential

Network = Callable[..., tuple[Tensor, Tensor]]
"""(species, center, neighbor, vector[, charge, spin]) -> atomic energies, dE/dvector."""


def compiled(potential: Potential) -> Network:
    """The compiled network of a potential, made now if it is not in the cache.

    Raises:
        ModelError: the compiler fails, the cache cannot be written, or its file is damaged.
    """
    path = cache_folder() / f"{name_of(potential)}.pt2"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path):
            if not path.exists():
                _make(potential, path)
    except OSError as error:
        raise ModelError(
            f"{path.parent} cannot be written: {error.strerror or error}. Set DPA4SIM_CACHE to a "
            "folder that can, or leave compile out."
        ) from error
    try:
        return torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise ModelError(f"{path} is damaged. Remove it; it is made again when needed.") from error


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    chosen = os.environ.get("DPA4SIM_CACHE")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "dpa4sim"


def name_of(potential: Potential) -> str:
    """Equal for what can use the same file: weights, precision, processor, versions."""
    from dpa4sim.pool.checkpoint import model_fingerprint

    versions = f"{__version__} {torch.__version__} {processor(potential.device)}"
    return f"{model_fingerprint(potential)}-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"


def processor(device: torch.device) -> str:
    """The kind of processor that something is compiled for."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def package(
    graph: torch.nn.Module,
    inputs: tuple[Any, ...],
    sizes: tuple[Any, ...],
    path: Path,
    about: Callable[[], dict[str, str]] = dict,
    options: dict[str, Any] | None = None,
) -> None:
    """Compile loops that are called often; the file appears whole or not at all.

    Args:
        sizes: the axes of the inputs whose lengths are symbols, as torch.export takes them.
        about: metadata, known when the graph has been traced.
        options: of the compiler.
    """
    partial = path.with_name(f".{path.stem}.partial.pt2")
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler, about itself
            program = torch.export.export(
                graph,
                inputs,
                dynamic_shapes=sizes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(partial),
                inductor_configs={
                    "aot_inductor.metadata": about(),
                    "aot_inductor.compile_wrapper_opt_level": "O0",  # it only calls the loops
                    "cpp.threads": 1,  # with more, sums have no order
                    **(options or {}),
                },
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make(potential: Potential, path: Path) -> None:
    from dpa4sim.export import export

    print(
        f"compiling the network for this {potential.device.type}, once, some minutes: {path}",
        file=sys.stderr,
        flush=True,
    )
    export(potential, path)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """One process compiles; others wait for what it makes."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
