"""Physical constants and conversions, once.  Units: eV, Å, K, fs, amu, elementary charge."""

GPA_PER_EV_A3 = 160.21766208
"""1 eV/Å^3 in GPa (CODATA 2014, the set that ASE uses)."""

BOLTZMANN_EV_K = 8.6173303e-5
"""Boltzmann's constant in eV/K (CODATA 2014)."""

EV_PER_AMU_A2_FS2 = 103.642695720
"""1 amu Å^2/fs^2 in eV (CODATA 2014): kinetic energies of velocities in Å/fs."""

COULOMB_EV_A = 14.3996
"""e^2 / (4 pi eps_0) in eV Å, as precise as the reference implementation has it."""

BOHR_A = 0.5291772109
"""Bohr radius in Å, as precise as the reference implementation has it."""

HARTREE_EV = 27.21138602
"""Hartree's energy in eV (CODATA 2014)."""
