"""Two searches, one answer."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule, mx2
from ase.neighborlist import neighbor_list

from dpa4sim.screen.contacts import pairs, relative_pairs

FAR = molecule("H2O")
FAR.positions[1] += 5e4
NEEDLE = Atoms("Cu2", [[0, 0, 0], [0.2, 0, 1e5]], cell=[5, 5, 2e5], pbc=True)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu"),
        bulk("NaCl", "rocksalt", a=5.64).repeat((1, 2, 1)),
        mx2("MoS2", vacuum=6),
        fcc111("Al", (2, 2, 2), vacuum=8),
        Atoms("Cu2", [[0, 0, 0], [0, 0, 2]], cell=[3, 3, 0], pbc=(True, True, False)),
        molecule("C6H6"),
        FAR,
        NEEDLE,
    ],
)
@pytest.mark.parametrize("radius", [0.5, 3.1])
def test_pairs_are_those_of_ase(atoms: Atoms, radius: float) -> None:
    found = pairs(atoms, radius)
    known = neighbor_list("ijSd", atoms, radius)

    def table(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(map(tuple, np.column_stack([first, second, shift]).tolist()))

    assert table(*found[:3]) == table(*known[:3])
    np.testing.assert_allclose(np.sort(found.distance), np.sort(known[3]), atol=1e-9)


def test_distances_in_sums_of_radii() -> None:
    water = molecule("H2O")
    assert len(relative_pairs(water, 1.3).first) == 4  # two bonds, not the H-H distance
    assert relative_pairs(water, 1.3).distance.max() < 1.1
