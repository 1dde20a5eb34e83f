"""Relaxation: Batch -> relaxed Batch and Status.

cell.py       atoms and lattice as one set of free coordinates
criterion.py  converged or sick, read off after each evaluation
fire.py       FIRE as ASE takes it, a pair (fire_init, fire_step)
pack.py       picking and joining the systems of packed records
run.py        relax(): the loop that feeds, judges and empties the working batch
"""
