"""pymatgen: Structure, Molecule and ComputedStructureEntry <-> Batch.  Imported when first used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Molecule, Structure
    from pymatgen.entries.computed_entries import ComputedStructureEntry


def from_structure(structure: Structure | Molecule) -> Batch:
    """One system from a Structure (with its lattice's pbc) or a Molecule.

    Charge and spin are what `structure.properties` says, else the charge that was set on a
    Structure, else those of a Molecule that is charged or has unpaired electrons.  The site
    property "magmom" is a magnetic moment, a vector or a number along z.

    Raises:
        DataError: a site is partially occupied or holds no element.
    """
    numbers = [_atomic_number(structure, index) for index in range(len(structure))]
    lattice = getattr(structure, "lattice", None)
    state = {name: structure.properties.get(name) for name in ("charge", "spin")}
    for name, value in _own_state(structure).items():
        state[name] = value if state[name] is None else state[name]
    return Batch.single(
        torch.tensor(structure.cart_coords, dtype=torch.float64),
        torch.tensor(numbers, dtype=torch.long),
        None if lattice is None else torch.tensor(lattice.matrix, dtype=torch.float64),
        False if lattice is None else list(lattice.pbc),
        charge=state["charge"],
        spin=state["spin"],
        magmoms=_moments(structure),
    )


def to_structures(batch: Batch) -> list[Structure | Molecule]:
    """A Structure for each system with a cell, a Molecule for each without.

    Charge and spin go into `properties`, magnetic moments into the site property "magmom".

    Raises:
        DataError: a system is periodic along some vectors and its cell has no volume.
    """
    from pymatgen.core import Lattice, Molecule, Structure

    structures: list[Structure | Molecule] = []
    for index, system in enumerate(batch.to("cpu").split()):
        numbers, positions = system.atomic_numbers.tolist(), system.positions.numpy()
        given = (("charge", system.charge), ("spin", system.spin))
        properties = {name: float(value[0]) for name, value in given if value is not None}
        sites = None
        if system.magmoms is not None and not bool(system.magmoms.isnan().any()):
            sites = {"magmom": system.magmoms.tolist()}
        if float(system.volume[0]) > 0:
            a, b, c = system.pbc[0].tolist()
            structures.append(
                Structure(
                    Lattice(system.cell[0].numpy(), pbc=(a, b, c)),
                    numbers,
                    positions,
                    coords_are_cartesian=True,
                    properties=properties,
                    site_properties=sites,
                )
            )
        elif not bool(system.pbc.any()):
            structures.append(
                Molecule(numbers, positions, properties=properties, site_properties=sites)
            )
        else:
            raise DataError(
                f"System {index} is periodic but its cell has no volume. "
                "A pymatgen Lattice needs three independent vectors; complete the cell."
            )
    return structures


def to_entries(batch: Batch, energies: torch.Tensor) -> list[ComputedStructureEntry]:
    """ComputedStructureEntries, for pymatgen's phase diagrams.

    Args:
        batch: systems with a cell.
        energies: total energy of each system in eV.
    """
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    pairs = zip(to_structures(batch), energies.tolist(), strict=True)
    return [ComputedStructureEntry(cast("Structure", s), energy) for s, energy in pairs]


def _atomic_number(structure: Structure | Molecule, index: int) -> int:
    from pymatgen.core import DummySpecies

    site = structure[index]
    if not site.is_ordered:
        raise DataError(
            f"{structure.formula} is partially occupied: site {index} holds "
            f"{site.species_string}. Give an ordered structure."
        )
    if isinstance(site.specie, DummySpecies):
        raise DataError(
            f"{structure.formula} has the placeholder {site.species_string} on site {index}. "
            "Give an element."
        )
    return int(site.specie.Z)


def _moments(structure: Structure | Molecule) -> list[list[float]] | None:
    """A vector for each site, NaN where a site has none; None where no site has one."""
    given = [site.properties.get("magmom") for site in structure]
    if all(value is None for value in given):
        return None
    return [_moment(value, structure, index) for index, value in enumerate(given)]


def _moment(value: Any, structure: Structure | Molecule, index: int) -> list[float]:
    if value is None:
        return [math.nan] * 3
    value = getattr(value, "global_moment", value)  # pymatgen's Magmom has axes of its own
    try:
        numbers = np.asarray(value, dtype=float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.size not in (1, 3):
        raise DataError(
            f"{structure.formula} has the magmom {value!r} on site {index}. Give a number or three."
        )
    return [0.0, 0.0, float(numbers[0])] if numbers.size == 1 else numbers.tolist()


def _own_state(structure: Structure | Molecule) -> dict[str, Any]:
    """Charge and spin that pymatgen keeps by itself; nothing for what it merely defaults to."""
    if hasattr(structure, "lattice"):
        return {"charge": structure._charge}  # .charge falls back to oxidation states and warns
    paired = structure.charge == 0 and structure.spin_multiplicity == 1
    return (
        {} if paired else {"charge": structure.charge, "spin": float(structure.spin_multiplicity)}
    )
