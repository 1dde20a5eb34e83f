"""Which crystals are stable?  Candidates ranked above the hull of the elements and known compounds.

python examples/05_screen.py [MODEL]
"""

import sys
import tempfile

from ase.build import bulk

import dpa4sim

candidates = [
    bulk("NaCl", "rocksalt", a=5.6),
    bulk("NaCl", "cesiumchloride", a=3.4),
    bulk("NaCl", "zincblende", a=6.1),
    bulk("MgO", "rocksalt", a=4.2),
    bulk("Si", "diamond", a=5.4),
    bulk("Si", "fcc", a=3.8),
]
for atoms, kind in zip(candidates, ("B1", "B2", "B3", "B1", "A4", "A1"), strict=True):
    atoms.info["name"] = f"{atoms.get_chemical_formula()}-{kind}"

potential = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
with tempfile.TemporaryDirectory() as folder:
    table = dpa4sim.screen(
        potential,
        candidates,
        directory=f"{folder}/campaign",  # the same call goes on there after any interruption
        built_in_references=True,
        fmax=0.05,
        max_steps=60,
    )

for row in table.sort_by("rank").to_pylist():
    above, formation = row["e_above_hull_reference"], row["formation_energy"]
    text = f"{above:7.3f} eV/atom above, formed with {formation:7.3f}" if row["rank"] else "-"
    print(f"{row['name']:10s} {row['status']:10s} {text}  {' '.join(row['flags'])}")
