"""Physical constants and conversions, once.  Units: eV, Å, K, fs, amu, elementary charge."""

GPA_PER_EV_A3 = 160.21766208
"""1 eV/Å^3 in GPa (CODATA 2014, the set that ASE uses)."""

COULOMB_EV_A = 14.3996
"""e^2 / (4 pi eps_0) in eV Å, as precise as the reference implementation has it."""

BOHR_A = 0.5291772109
"""Bohr radius in Å, as precise as the reference implementation has it."""
