"""Oxidation states and radii of ions, from pymatgen's tables."""

from __future__ import annotations

from functools import cache

from pymatgen.core import Element

ANIONS = {
    -1: "H F Cl Br I",
    -2: "O S Se Te",
    -3: "N P As Sb Bi",
    -4: "C Si Ge Sn Pb",
}
"""Charge -> elements that take it as anions."""

STRONG_ANIONS = frozenset(["N", "O", "F", "S", "Cl", "Se", "Br", "I"])
"""What has one of these and is not neutral by its charges is no compound."""

NOBLE_GASES = frozenset(["He", "Ne", "Ar", "Kr", "Xe", "Rn"])

POLYATOMIC = frozenset(["N", "Cl", "Br", "I"])
"""Cations by the tables, in NO3- or ClO4-, and nowhere else in a crystal of single ions."""

COVALENT_ANIONS = {"H": 1.25, "C": 1.42, "Si": 2.02, "Ge": 2.05, "P": 1.80, "As": 1.88}
COVALENT_ANIONS |= {"Sb": 2.08, "Bi": 2.15, "N": 1.32, "Sn": 2.22, "Pb": 2.25}
"""Crystal radii (Å) of anions that Shannon's table lacks: measured bonds of the rocksalt and
zincblende crystals less the radius of the cation there."""

LONE_PAIRS = {("Sn", 2): {4: 1.00, 6: 1.18}, ("Ge", 2): {4: 0.82, 6: 1.02}}
LONE_PAIRS |= {("In", 1): {6: 1.45}, ("Ga", 1): {6: 1.20}}
"""Crystal radii (Å) by coordination that Shannon's table lacks, from sulfides and halides."""

PER_CHARGE = 0.08
"""Å that a cation loses with each further electron, roughly, over the table."""

ROMAN = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}
ROMAN |= {"X": 10, "XI": 11, "XII": 12, "XIV": 14}


def anion_charge(symbol: str) -> int | None:
    """The charge of an element as an anion, None where it is none."""
    return next((charge for charge, names in ANIONS.items() if symbol in names.split()), None)


@cache
def cation_charges(symbol: str) -> tuple[int, ...]:
    """Positive oxidation states, ascending.

    They are the common ones and those of ten or more crystals of the ICSD; where pymatgen has no
    count of those, every state that has a radius.
    """
    element = Element(symbol)
    if symbol in NOBLE_GASES or symbol in ("O", "F"):
        return ()
    states = set(element.common_oxidation_states) | set(element.icsd_oxidation_states)
    if not element.icsd_oxidation_states:
        states |= set(element.ionic_radii)
    return tuple(sorted(state for state in states if state > 0))


@cache
def electronegativity(symbol: str) -> float:
    """Pauling's, 0 where there is none."""
    return 0.0 if symbol in ("He", "Ne", "Ar") else float(Element(symbol).X)


@cache
def crystal_radius(symbol: str, charge: float, coordination: int) -> float | None:
    """Shannon's crystal radius (Å) at the nearest coordination there is; high spin.

    A charge that the table lacks, or a mean of two, is extrapolated from the nearest.

    Returns:
        None for an ion whose element has no radius of that sign.
    """
    if charge < 0 and symbol in COVALENT_ANIONS:
        return COVALENT_ANIONS[symbol]
    radii = _radii(symbol)
    charges = [known for known in radii if known * charge > 0]
    if not charges:
        return None
    nearest = min(charges, key=lambda known: (abs(known - charge), -known))
    found = radii[nearest]
    radius = found[min(found, key=lambda number: (abs(number - coordination), number))]
    return radius - (charge - nearest) * PER_CHARGE if charge > 0 else radius


@cache
def _radii(symbol: str) -> dict[int, dict[int, float]]:
    """Crystal radii (Å) by charge and coordination number."""
    element = Element(symbol)
    radii = {charge: {6: float(radius)} for charge, radius in element.ionic_radii.items()}
    table = element.data.get("Shannon radii")
    for charge, labels in (table if isinstance(table, dict) else {}).items():
        found = {}
        for label, spins in labels.items():
            number = ROMAN.get(label.removesuffix("SQ").removesuffix("PY"))
            if number is not None and (number not in found or label in ROMAN):
                spin = spins.get("High Spin") or next(iter(spins.values()))
                found[number] = float(spin["crystal_radius"])
        if found and charge:  # Am has a radius of no charge
            radii[int(charge)] = found
    radii.update({charge: found for (name, charge), found in LONE_PAIRS.items() if name == symbol})
    return radii
