"""Two crystals at two temperatures, two replicas of each: eight trajectories in one batch.

python examples/03_md.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

from ase.build import bulk

import dpa4sim

structures = [bulk("Si", "diamond", a=5.37), bulk("NaCl", "rocksalt", a=5.67)]
kelvins = [100.0, 300.0]

potential = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
with tempfile.TemporaryDirectory() as folder:
    output = Path(folder) / "run.h5"
    runs = dpa4sim.md(
        potential,
        [atoms for atoms in structures for _ in kelvins],
        ensemble="nvt",
        temperature=kelvins * len(structures),  # one per structure
        timestep=2.0,
        steps=50,
        replicas=2,
        sample_every=5,
        frame_every=10,
        output=output,
    )
    with dpa4sim.read_trajectory(output) as trajectory:
        for run in runs:
            pressure = trajectory.observables(run.index)["pressure_gpa"].values
            print(f"{trajectory.labels[run.index]:6s} replica {run.replica}", end="  ")
            print(f"{run.means['temperature']:6.1f} K  drift {run.drift:+.1e} eV/atom", end="  ")
            print(f"{len(pressure)} samples, {pressure.mean():+.2f} GPa  {run.status.name}")
        last = list(trajectory.frames(0))[-1]  # ase.Atoms
        print(f"{trajectory.n_frames(0)} frames of {last.get_chemical_formula()}")
