"""The elements as solids: what is stable at room temperature or, of the gases, when cold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from dpa4sim.screen.prototypes import build
from dpa4sim.screen.symmetry import primitive_cell

if TYPE_CHECKING:
    from ase import Atoms

TABLE = """
bcc | 229 | A 0 0 0 | Li 3.5093; Na 4.2906; K 5.3210; Rb 5.6100; Cs 6.0670; Ba 5.0230; V 3.0240; Nb 3.3004; Ta 3.3029; Cr 2.8848; Mo 3.1470; W 3.1652; Fe 2.8665; Eu 4.5810; Ra 5.1480
fcc | 225 | A 0 0 0 | Al 4.0495; Ca 5.5884; Sr 6.0849; Ni 3.5240; Cu 3.6149; Rh 3.8032; Pd 3.8907; Ag 4.0857; Ir 3.8394; Pt 3.9242; Au 4.0782; Pb 4.9508; Ce 5.1610; Yb 5.4847; Ac 5.3110; Th 5.0845; Ne 4.4640; Ar 5.3110; Kr 5.6460; Xe 6.1320
hcp | 194 | A 1/3 2/3 1/4 | He 3.5700 5.8300; Be 2.2858 3.5843; Mg 3.2094 5.2108; Sc 3.3088 5.2680; Ti 2.9508 4.6855; Co 2.5071 4.0695; Zn 2.6650 4.9470; Y 3.6482 5.7318; Zr 3.2316 5.1475; Tc 2.7380 4.3930; Ru 2.7058 4.2816; Cd 2.9793 5.6196; Gd 3.6336 5.7810; Tb 3.6055 5.6966; Dy 3.5915 5.6501; Ho 3.5778 5.6178; Er 3.5592 5.5850; Tm 3.5375 5.5540; Lu 3.5052 5.5494; Hf 3.1946 5.0511; Re 2.7608 4.4580; Os 2.7348 4.3190; Tl 3.4563 5.5263
dhcp | 194 | A 0 0 0; A 1/3 2/3 1/4 | La 3.7740 12.1710; Pr 3.6721 11.8326; Nd 3.6582 11.7966; Pm 3.6500 11.6500; Am 3.4681 11.2410
samarium | 166 | A 0 0 0; A 0 0 z | Sm 3.6290 26.2070, 0.2222
diamond | 227 | A 1/8 1/8 1/8 | Si 5.4310; Ge 5.6579
graphite | 194 | A 0 0 1/4; A 1/3 2/3 1/4 | C 2.4610 6.7080
diamond | 227 | A 1/8 1/8 1/8 | C 3.5669
beta_tin | 141 | A 0 3/4 1/8 | Sn 5.8316 3.1815
diamond | 227 | A 1/8 1/8 1/8 | Sn 6.4892
indium | 139 | A 0 0 0 | In 3.2523 4.9461; Pa 3.9250 3.2380
gallium | 64 | A 0 y z | Ga 4.5192 7.6586 4.5258, 0.1539 0.0810
black_phosphorus | 64 | A 0 y z | P 3.3136 10.4780 4.3763, 0.1017 0.0806
arsenic | 166 | A 0 0 z | As 3.7598 10.5475, 0.2271; Sb 4.3084 11.2740, 0.2335; Bi 4.5460 11.8620, 0.2339
selenium | 152 | A x 0 1/3 | Se 4.3662 4.9536, 0.2254; Te 4.4572 5.9290, 0.2633
polonium | 221 | A 0 0 0 | Po 3.3590
mercury | 166 | A 0 0 0 | Hg 3.4574 6.6634
alpha_manganese | 217 | A 0 0 0; A x x x; A y y z; A u u v | Mn 8.9125, 0.317 0.356 0.034 0.089 0.282
alpha_boron | 166 | A x -x z; A u -u v | B 4.9080 12.5656, 0.1177 0.8927 0.1961 0.0245
alpha_sulfur | 70 | A a b c; A d e f; A p q r; A s t u | S 10.4646 12.8660 24.4860, 0.1058 0.0473 0.7014 0.9572 0.2269 0.4959 0.0340 0.2802 0.4238 0.0360 0.1576 0.3705
nitrogen | 205 | A x x x | H 5.3100, 0.0402; N 5.6500, 0.0557
alpha_oxygen | 12 | A x 0 z | O 5.4030 3.4330 4.2470 117.84, 0.0623 0.1609
alpha_fluorine | 15 | A x y z | F 5.5000 3.2800 7.2800 102.17, 0.2410 0.2950 0.0935
iodine | 64 | A 0 y z | Cl 6.1450 4.3950 8.1540, 0.1190 0.1030; Br 6.7370 4.5480 8.7610, 0.1350 0.1100; I 7.1360 4.6860 9.7840, 0.1543 0.1174
alpha_uranium | 63 | A 0 y 1/4 | U 2.8537 5.8695 4.9548, 0.1025
alpha_neptunium | 62 | A x 1/4 z; A u 1/4 v | Np 6.6630 4.7230 4.8870, 0.0360 0.2080 0.3190 0.8420
alpha_plutonium | 11 | A a 1/4 b; A c 1/4 d; A e 1/4 f; A g 1/4 h; A i 1/4 j; A k 1/4 l; A m 1/4 n; A o 1/4 p | Pu 6.1830 4.8220 10.9630 101.79, 0.345 0.162 0.767 0.168 0.128 0.340 0.657 0.457 0.025 0.618 0.473 0.653 0.328 0.926 0.869 0.894
fcc | 225 | A 0 0 0 | Co 3.5440
beta_manganese | 213 | A x x x; A 1/8 y z | Mn 6.3150, 0.0636 0.2022 0.4522
"""  # noqa: E501
"""Name | space group | occupied positions | element, lattice (Å, degrees), free coordinates; ...

The first line of an element is its ground state; further ones are so close that a model may prefer
them.  Lattices of the gases are those near 0 K, the others those of room temperature.
"""

IN_ALLOYS = {"H": 3.0, "B": 6.0, "C": 7.0, "N": 8.0, "O": 10.0, "Si": 13.0, "P": 13.5, "S": 15.0}
IN_ALLOYS |= {"Ga": 16.5, "Ge": 16.0, "As": 16.5, "Se": 18.0, "Te": 25.0, "Sb": 22.0, "Sn": 22.5}
IN_ALLOYS |= {"Al": 14.5, "Bi": 30.0, "Mn": 11.5}
"""Å^3 per atom in compounds with metals, of elements whose own solids are open or molecular."""


@dataclass(frozen=True)
class Solid:
    """A structure of an element; lattice in Å and degrees, free coordinates fractional."""

    element: str
    name: str
    space_group: int
    sites: str
    lattice: tuple[float, ...]
    free: tuple[float, ...]

    def build(self) -> Atoms:
        """Its primitive cell (Å)."""
        cell = build(self.space_group, self.sites, (self.element,), self.lattice, self.free)
        return primitive_cell(cell)


@cache
def solids() -> dict[str, tuple[Solid, ...]]:
    """Structures by element, the ground state first."""
    found: dict[str, tuple[Solid, ...]] = {}
    for line in TABLE.strip().splitlines():
        name, number, sites, members = (field.strip() for field in line.split("|"))
        for member in members.split(";"):
            element, *lattice = member.partition(",")[0].split()
            free = member.partition(",")[2].split()
            solid = Solid(
                element,
                name,
                int(number),
                sites,
                tuple(map(float, lattice)),
                tuple(map(float, free)),
            )
            found[element] = (*found.get(element, ()), solid)
    return found


@cache
def atomic_volume(element: str) -> float:
    """Å^3 per atom in a compound without ions; that of zinc for what has no solid here."""
    if element in IN_ALLOYS:
        return IN_ALLOYS[element]
    forms = solids().get(element)
    if forms is None:
        return 15.2
    atoms = forms[0].build()
    return float(atoms.get_volume() / len(atoms))
