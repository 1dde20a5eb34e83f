"""Export: a potential as one compiled file that runs without dpa4sim, in Python or C++.

The file is a package of PyTorch's AOTInductor, compiled for one kind of processor.  It takes the
edges of any structures and gives what all else is a sum of (`assemble` in potential.py):

    species (atom), center (edge), neighbor (edge), vector (edge, 3)
        -> atomic energies (atom) in eV, dE/dvector (edge, 3) in eV/Å

Any number of atoms and of edges, none included; the edges may come in any order.  A model of charge
and spin takes both, per atom, as two more inputs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dpa4sim import __version__
from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential

FORMAT = "dpa4sim-aoti-1"
"""Written into the metadata of every exported file."""

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
"""Largest difference from the Potential, per largest number where that is above 1 eV or 1 eV/Å:
what another order of additions makes in that precision."""

LATTICES = ((2, 2, 3), (1, 2, 2), (3, 3, 3))
"""Atoms along each axis of the structures that are traced (the first) and checked."""

SPACING_A, JITTER_A = 2.6, 0.2
"""Between the atoms of a lattice, and the standard deviation of their displacements."""

Function = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written and how far it is from the Potential.

    Args:
        path: the file.
        sizes: (atoms, edges) of each structure that it was checked on.
        energy_error: largest difference of an atomic energy, as `TOLERANCE` counts it.
        gradient_error: the same of dE/dvector.
    """

    path: Path
    sizes: tuple[tuple[int, int], ...]
    energy_error: float
    gradient_error: float


def export(potential: Potential, path: str | Path, structures: Any = None) -> Exported:
    """Compile a potential for its device and its dtype, check the result, and write it.

    It takes minutes.  The file appears only when it agrees with the potential, on structures of
    other sizes than the one that was traced.

    Args:
        potential: the network.
        path: a .pt2 file.
        structures: a batch to check it on, as `Potential.evaluate` takes it, beside lattices of the
            model's elements.

    Raises:
        ConfigError: the name does not end in .pt2.
        DataError: a structure cannot be evaluated.
        ModelError: PyTorch cannot compile the network, or the result disagrees with the potential.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ConfigError(f"{path} should end in .pt2, the suffix of AOTInductor's packages.")
    if potential.config.has_spins:
        raise ModelError("A model with spins cannot be exported to .pt2; export it to DeePMD-kit.")
    batches = _lattices(potential)
    if structures is not None:
        batches.append(_batch(potential, structures))
    cases = [arguments(potential, batch) for batch in batches]
    partial = path.with_name(f".{path.stem}.partial.pt2")
    try:
        try:
            _compile(potential, cases[0], partial)
        except RuntimeError as error:  # what the compilers below raise
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"PyTorch could not compile the network for {potential.device}: {why[0]}. It needs "
                "a C++ compiler such as g++; without one leave the compiling out."
            ) from error
        result = _check(potential, partial, cases, path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return result


def metadata(potential: Potential) -> dict[str, Any]:
    """What a user of the file must know: JSON under "dpa4sim" in the package's own metadata."""
    config = potential.config
    inputs = ["species", "center", "neighbor", "vector"]
    return {
        "format": FORMAT,
        "dpa4sim": __version__,
        "inputs": [*inputs, *(("charge", "spin") if config.charge_spin else ())],
        "outputs": ["atomic_energies", "vector_gradient"],
        "species": list(config.species),
        "atomic_numbers": list(config.atomic_numbers),
        "cutoff": config.cutoff,
        "units": {"length": "angstrom", "energy": "eV"},
        "dtype": _name(potential.dtype),
        "device": potential.device.type,
    }


def arguments(potential: Potential, batch: Batch) -> tuple[Tensor, ...]:
    """The inputs of the compiled network for a trusted batch on the potential's device."""
    edges = neighbors(batch, potential.cutoff)
    species = potential._species_of[batch.atomic_numbers]
    state = [value for value in potential._state(batch) if value is not None]
    vector = edges.vector.to(potential.dtype)
    return species, edges.center, edges.neighbor, vector, *state


def _batch(potential: Potential, structures: Any) -> Batch:
    """Structures of the user, refused as `evaluate` refuses them."""
    from dpa4sim.adapters.files import structures_to_batches

    systems = structures_to_batches(structures)
    potential.evaluate(systems)
    return Batch.concatenate(systems).to(potential.device)


def _lattices(potential: Potential) -> list[Batch]:
    """Shaken crystals of all the elements in turn, and an atom alone, which has no edge."""
    config = potential.config
    numbers = torch.tensor(config.atomic_numbers)
    charge, spin = (0.0, 1.0) if config.charge_spin else (None, None)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for shape in LATTICES:
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape))
        noise = torch.randn(grid.shape, generator=generator, dtype=torch.float64)
        cell = SPACING_A * torch.diag(torch.tensor(shape, dtype=torch.float64))
        z = numbers[torch.arange(len(grid)) % len(numbers)]
        positions = SPACING_A * grid + JITTER_A * noise
        batches.append(Batch.single(positions, z, cell, True, charge=charge, spin=spin))
    batches.append(Batch.single(torch.zeros(1, 3), numbers[:1], charge=charge, spin=spin))
    return [batch.to(potential.device) for batch in batches]


def _compile(potential: Potential, example: tuple[Tensor, ...], path: Path) -> None:
    """Trace energy and gradient with sizes as symbols, then compile.

    The gradient is taken before the trace ends, so the graph is of values only.
    """
    n_atoms, n_edges = torch.export.Dim("n_atoms", min=0), torch.export.Dim("n_edges", min=0)
    per_edge = {0: n_edges}
    sizes = ({0: n_atoms}, per_edge, per_edge, per_edge, {0: n_atoms}, {0: n_atoms})
    with warnings.catch_warnings(action="ignore"):  # of the compiler, about itself
        graph = _traced(potential.model, example)
        program = torch.export.export(
            graph,
            example,
            dynamic_shapes=sizes[: len(example)],
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                "aot_inductor.metadata": {"dpa4sim": json.dumps(metadata(potential))},
                "cpp.threads": 1,  # with more, the sums over edges have no order
            },
        )


def _traced(model: DPA4, example: tuple[Tensor, ...]) -> GraphModule:
    """Energy and gradient as one graph of plain operations; the kernels are not traceable."""
    plain = copy.deepcopy(model)
    plain.hand_written = False
    function = energy_and_gradient(plain)
    # Two signatures: the tracer counts the arguments.
    if len(example) == 4:
        return make_fx(
            lambda species, center, neighbor, vector: function(species, center, neighbor, vector),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*example)
    return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)


def energy_and_gradient(model: DPA4) -> Function:
    """Atomic energies and dE/dvector of a network as a function of its plain inputs."""

    def function(
        species: Tensor,
        center: Tensor,
        neighbor: Tensor,
        vector: Tensor,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        vector = vector.detach().requires_grad_(True)
        rows = torch.arange(species.shape[0] + 1, device=center.device)
        edges = Edges(center, neighbor, vector, torch.searchsorted(center, rows))
        with torch.enable_grad():
            atomic, _ = model(species, edges, charge, spin)
            (gradient,) = torch.autograd.grad(atomic.sum(), vector)
        return atomic.detach(), gradient

    return function


def _check(
    potential: Potential, package: Path, cases: list[tuple[Tensor, ...]], path: Path
) -> Exported:
    """Compare the compiled network with the potential's own on every structure."""
    compiled = torch._inductor.aoti_load_package(str(package))
    own = energy_and_gradient(potential.model)
    worst = [0.0, 0.0]
    for case in cases:
        for index, (got, expected) in enumerate(zip(compiled(*case), own(*case), strict=True)):
            worst[index] = max(worst[index], _difference(got, expected))
    tolerance = TOLERANCE[_name(potential.dtype)]
    if not max(worst) < tolerance:
        raise ModelError(
            f"The compiled network differs from the potential by {max(worst):.1e}; "
            f"{tolerance:.0e} is allowed, and nothing was written. "
            "Export with --dtype float64 to see whether it is rounding."
        )
    sizes = tuple((len(case[0]), len(case[1])) for case in cases)
    return Exported(path, sizes, *worst)


def _difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, per largest number where that is above 1; infinite for NaN."""
    if expected.numel() == 0:
        return 0.0
    difference = (got.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1)
    return float(difference.nan_to_num(nan=torch.inf))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
