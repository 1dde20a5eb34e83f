"""Saying what is wrong with a structure."""

import math
import re

import pytest
import torch

from dpa4sim.batch import Batch
from dpa4sim.complaint import complaint, complaints

CUBE = 4.0 * torch.eye(3, dtype=torch.float64)
KNOWN = frozenset({1, 8, 11, 17})


def water(**state) -> Batch:
    return Batch.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], **state)


def salt(**state) -> Batch:
    return Batch.single([[0, 0, 0], [2.0, 2.0, 2.0]], [11, 17], CUBE, True, **state)


def moved(batch: Batch, positions=None, cell=None) -> Batch:
    return batch.with_geometry(
        batch.positions if positions is None else torch.tensor(positions, dtype=torch.float64),
        batch.cell if cell is None else torch.as_tensor(cell, dtype=torch.float64).reshape(1, 3, 3),
    )


FLAT = [[4.0, 0, 0], [4.0, 1e-9, 0], [0, 0, 4.0]]
COMPLAINTS = {
    "no atoms": (Batch.single(torch.zeros(0, 3), []), "no atoms"),
    "nan": (moved(salt(), [[0, 0, 0], [0, math.nan, 0]]), "position of atom 1 is not a finite"),
    "inf": (moved(salt(), [[math.inf, 0, 0], [0, 0, 0]]), "position of atom 0 is not a finite"),
    "far": (moved(salt(), [[0, 0, 0], [0, 0, 1e12]]), "position of atom 1 lies beyond"),
    "nan cell": (moved(salt(), cell=math.nan * CUBE), "cell vector 0 is not a finite"),
    "nan charge": (water(charge=math.nan), "charge is not a finite"),
    "no cell": (moved(salt(), cell=0 * CUBE), "cell has no volume"),
    "flat cell": (moved(salt(), cell=FLAT), "has no volume"),
    "tiny cell": (moved(salt(), cell=0.01 * CUBE), "small or flat"),
    "dummy": (Batch.single([[0, 0, 0]], [0]), "atomic number 0"),
    "beyond the table": (Batch.single([[0, 0, 0]], [119]), "atomic number 119"),
    "stranger": (Batch.single([[0, 0, 0]], [94]), "does not know the element.s. Pu"),
    "one site": (moved(water(), [[0, 0, 0], [1, 0, 0], [1, 0, 1e-5]]), "atoms 1 and 2 stand on"),
    "one site by an image": (moved(salt(), [[0, 0, 0], [4.0, -4.0, 8.0]]), "atoms 0 and 1 stand"),
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_complaint_names_what_is_wrong(name):
    system, sentence = COMPLAINTS[name]
    found = complaint(system, KNOWN)
    assert found is not None
    assert re.search(sentence, found), found


GOOD = [
    water(),
    salt(charge=1, spin=2),
    moved(salt(), cell=-CUBE),
    moved(salt(), [[0, 0, 0], [4e4, 2.0, -2e4]]),
    Batch.single(
        [[0, 0, 0], [1, 1, 0]],
        [1, 1],
        torch.diag(torch.tensor([3.0, 3, 0])),
        [True, True, False],
    ),
    Batch.single([[0, 0, 0]], [8], 1.8 * torch.eye(3), True),
]


@pytest.mark.parametrize(
    "system",
    GOOD,
    ids=["water", "salt", "mirrored", "unwrapped", "slab", "one atom"],
)
def test_nothing_is_wrong_with_a_good_structure(system):
    assert complaint(system, KNOWN) is None
    assert complaint(system) is None


@pytest.mark.parametrize("known", [KNOWN, None])
def test_many_at_once_get_what_each_gets_alone(known):
    sick = [system for system, _ in COMPLAINTS.values()]
    systems = [*sick[:5], *GOOD, *sick[5:], *GOOD]
    assert complaints(systems, known) == [complaint(system, known) for system in systems]


def test_nothing_and_nothing_but_empty_ones():
    empty = COMPLAINTS["no atoms"][0]
    assert complaints([]) == []
    assert complaints([empty, empty]) == ["it has no atoms"] * 2
