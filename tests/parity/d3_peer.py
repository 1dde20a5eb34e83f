"""What simple-dftd3 says: run by a python that has the packages dftd3 and ase.

It reads {"structures": [...], "functionals": [...]} from stdin and writes the same with energies
(eV), forces (eV/Å) and stresses (eV/Å^3, Voigt; null for molecules) of each pair of them.
"""

import json
import sys

import dftd3
from ase import Atoms
from ase.units import Bohr
from dftd3.ase import DFTD3

CUTOFF = 60 * Bohr  # the package's own for pairs; for coordination numbers it has a shorter one


def answer(structure, functional):
    """Two-body D3(BJ) of one structure."""
    atoms = Atoms(**structure)
    atoms.calc = DFTD3(
        method=functional,
        damping="d3bj",
        params_tweaks={"method": functional, "atm": False},
        realspace_cutoff={"disp2": CUTOFF, "disp3": 1.0, "cn": CUTOFF},
    )
    return {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces().tolist(),
        "stress": atoms.get_stress().tolist() if atoms.pbc.all() else None,
    }


asked = json.load(sys.stdin)
asked["origin"] = f"dftd3 {dftd3.__version__}, two-body D3(BJ), every cutoff 60 Bohr"
asked["answers"] = {
    functional: [answer(structure, functional) for structure in asked["structures"]]
    for functional in asked["functionals"]
}
json.dump(asked, sys.stdout)
