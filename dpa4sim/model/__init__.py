"""The DPA4 network: species and edge vectors -> atomic energies, one file per subsection of the paper's 4.2."""

from dpa4sim.model.dpa4 import DPA4

__all__ = ["DPA4"]
