"""The DPA4 network: species and edge vectors -> atomic energies.

One file per subsection of the paper's section 4.2.
"""

from dpa4sim.model.dpa4 import DPA4

__all__ = ["DPA4"]
