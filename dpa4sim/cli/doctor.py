"""dpa4sim doctor: versions, GPU, kernels, and whether the physics holds on this machine."""

from __future__ import annotations

import argparse
import math
import platform
from importlib import import_module, metadata
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from dpa4sim import __version__
from dpa4sim.cli.options import check_device
from dpa4sim.cli.table import properties, table

if TYPE_CHECKING:
    from dpa4sim.batch import Batch
    from dpa4sim.potential import Potential

PACKAGES = (
    "torch",
    "numpy",
    "ase",
    "pymatgen",
    "torch-sim-atomistic",
    "nvalchemi-toolkit-ops",
    "vesin",
    "safetensors",
    "h5py",
    "matplotlib",
)
TOLERANCE = {"rotation": 1e-8, "forces": 1e-5, "batch": 1e-8}
"""Float64: energies to 1e-8 eV, forces to the rounding of an energy of 1e3 eV over `STEP_A`."""
STEP_A = 3e-4
LEAST_FORCE = 1e-3
"""eV/Å; a model without forces would obey every law."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", default="cpu", help="where to run the self-check [cpu]")


def run(args: argparse.Namespace) -> int:
    """Print what is here, check the physics, give a verdict."""
    check_device(args.device)
    print(properties([*_versions(), *_hardware(), ("kernels", _kernels())]))
    potential, name = _potential(args.device)
    print(f"\nself-check of {name} in float64 on {args.device}")
    checks = [
        ("energy under rotation", "eV", rotation_error(potential), TOLERANCE["rotation"]),
        ("forces = -dE/dR", "relative", force_error(potential), TOLERANCE["forces"]),
        ("batch = single", "eV", batch_error(potential), TOLERANCE["batch"]),
    ]
    rows = [
        (what, f"{error:.1e}", f"{limit:.0e}", unit, "ok" if error < limit else "FAILED")
        for what, unit, error, limit in checks
    ]
    print(table(("law", "off by", "limit", "unit", ""), rows))
    failed = [what for what, _, error, limit in checks if not error < limit]
    print(f"\nverdict: {'not well: ' + ', '.join(failed) if failed else 'all is well'}.")
    return 1 if failed else 0


def sample(seed: int, n_atoms: int, potential: Potential) -> Batch:
    """A periodic box of up to 27 atoms: shaken sites of a loose lattice, random known elements."""
    import torch

    from dpa4sim.batch import Batch

    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(potential.config.atomic_numbers)
    chosen = torch.randint(len(numbers), (n_atoms,), generator=generator)
    side = 2.6 * 3
    sites = 2.6 * torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)
    positions = sites[torch.randperm(27, generator=generator)[:n_atoms]]
    noise = torch.rand(positions.shape, generator=generator, dtype=torch.float64)
    cell = side * torch.eye(3, dtype=torch.float64)
    system = Batch.single(positions + 0.3 * noise, numbers[chosen], cell, True)
    return system.to(potential.device)


def rotation_error(potential: Potential) -> float:
    """Largest change of the energy under a rotation, eV."""
    import torch

    system = sample(0, 12, potential)
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation.to(potential.device)
    turned = system.with_geometry(system.positions @ rotation.T, system.cell @ rotation.T)
    return float((potential(turned).energy - potential(system).energy).abs().max())


def force_error(potential: Potential) -> float:
    """Largest relative difference between -F.d and the slope of the energy along a direction d.

    The slope is a central difference of fourth order.  Infinite for a model without forces.
    """
    import torch

    system = sample(0, 12, potential)
    forces, worst = potential(system).forces, 0.0
    if not float(forces.abs().max()) > LEAST_FORCE:
        return math.inf
    generator = torch.Generator().manual_seed(2)

    def energy(shift: torch.Tensor) -> float:
        moved = system.with_geometry(system.positions + shift, system.cell)
        return float(potential(moved).energy[0])

    for _ in range(3):
        noise = torch.randn(forces.shape, generator=generator, dtype=torch.float64)
        step = STEP_A * noise.to(potential.device)
        near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
        slope = (8 * near - far) / 12
        worst = max(
            worst, abs(slope + float((forces * step).sum())) / float((forces * step).norm())
        )
    return worst


def batch_error(potential: Potential) -> float:
    """Largest change of an energy by the company that a structure keeps, eV."""
    import torch

    from dpa4sim.batch import Batch

    systems = [sample(seed, n, potential) for seed, n in ((0, 12), (1, 5), (2, 20))]
    together = potential(Batch.concatenate(systems)).energy
    alone = torch.cat([potential(system).energy for system in systems])
    return float((together - alone).abs().max())


def _potential(device: str) -> tuple[Potential, str]:
    """The shipped model, or a random one when none is shipped."""
    import torch

    from dpa4sim.config import DPA4Config
    from dpa4sim.model import DPA4
    from dpa4sim.model_file import released
    from dpa4sim.potential import Potential, load

    names = list(released())
    if names:
        return load(names[0], device=device, dtype="float64"), f"'{names[0]}'"
    config = DPA4Config(species=("H", "O", "Si"), cutoff=5.0, channels=16, n_blocks=1, max_degree=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPA4(config, dtype=torch.float64)
        for weight in network.parameters():  # some start at zero, and their branch with them
            weight.data += 0.05 * torch.randn_like(weight)
    return Potential(network, device=device, dtype="float64"), "a random model"


def _versions() -> list[tuple[str, str]]:
    rows = [("dpa4sim", __version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _hardware() -> list[tuple[str, str]]:
    import torch

    rows = [("processor", f"{platform.machine()}, {torch.get_num_threads()} threads in use")]
    if not torch.cuda.is_available():
        return [*rows, ("GPU", "none that PyTorch can use")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    return rows


def _kernels() -> str:
    """Hand-written kernels that can be imported here."""
    try:
        package = import_module("dpa4sim.kernels")
    except ImportError:
        return "none: plain PyTorch"
    words = []
    for module in iter_modules(package.__path__):
        try:
            import_module(f"dpa4sim.kernels.{module.name}")
            words.append(module.name)
        except ImportError as error:
            words.append(f"{module.name} (not usable: {error})")
    return ", ".join(words) or "none: plain PyTorch"
