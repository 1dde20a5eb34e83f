"""Dynamics: Batch -> trajectories.

random.py        numbers that belong to an atom and a step, whatever else shares the batch
state.py         a batch in motion, and the conditions that each system is under
nve.py           kick, drift and the velocity Verlet step that they make
nvt.py           Langevin (BAOAB) and stochastic velocity rescaling
npt.py           stochastic cell rescaling: isotropic, anisotropic, triclinic
observables.py   what is measured on the way, on the device
settings.py      what a run is asked to do
watch.py         averages, displacements and pair distances of a working set
dynamics.py      what the pool does to trajectories
recorder.py      from a working set to the file
layout.py, growing_file.py, writer.py, trajectory.py   the file of a run
run.py           md(): the call that puts it all together
"""

from dpa4sim.simulate.dynamics import MDRun
from dpa4sim.simulate.run import md
from dpa4sim.simulate.trajectory import Trajectory, read_trajectory

__all__ = ["MDRun", "Trajectory", "md", "read_trajectory"]
