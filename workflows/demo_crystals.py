"""Write `dpa4sim/crystals/experimental.extxyz`: real crystals with textbook lattice parameters.

    python workflows/demo_crystals.py [OUTPUT.extxyz]

One line of `CRYSTALS` is one crystal: name | formula | prototype | elements of its slots | lattice
parameters (Å, degrees) | free coordinates (fractional) | cell.  The lattice parameters are the
independent ones of the crystal system (a; a c; a b c; a b c beta).  The cell is `p` (primitive),
`c` (conventional) or either with repetitions, `p 2 2 1`.
"""

import io
import re
import sys
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import spglib
from ase import Atoms
from ase.io import write
from ase.spacegroup import crystal as crystal_of_space_group

SOURCE = "textbook room-temperature lattice parameters"
DEFAULT_OUTPUT = Path(__file__).parents[1] / "dpa4sim" / "crystals" / "experimental.extxyz"


@dataclass(frozen=True)
class Prototype:
    """A space group and occupied positions; letters in the positions are free coordinates."""

    space_group: int
    sites: str
    setting: int = 1


@dataclass(frozen=True)
class Crystal:
    """One line of the table: which elements sit in which prototype, and how large the cell is."""

    name: str
    formula: str
    prototype: str
    elements: tuple[str, ...]
    lattice: tuple[float, ...]
    free: tuple[float, ...]
    cell: str


# Slots are capital letters, in the order of `Crystal.elements`; Fd-3m, I41/amd, P4/nmm and Pmmn
# are written with the origin at the inversion centre (setting 2), R groups in hexagonal axes.
PROTOTYPES = {
    "fcc": Prototype(225, "A 0 0 0"),
    "bcc": Prototype(229, "A 0 0 0"),
    "hcp": Prototype(194, "A 1/3 2/3 1/4"),
    "dhcp": Prototype(194, "A 0 0 0; A 1/3 2/3 1/4"),
    "diamond": Prototype(227, "A 1/8 1/8 1/8", 2),
    "beta_tin": Prototype(141, "A 0 3/4 1/8", 2),
    "indium": Prototype(139, "A 0 0 0"),
    "selenium": Prototype(152, "A x 0 1/3"),
    "arsenic": Prototype(166, "A 0 0 z"),
    "black_phosphorus": Prototype(64, "A 0 y z"),
    "graphite": Prototype(194, "A 0 0 1/4; A 1/3 2/3 1/4"),
    "alpha_manganese": Prototype(217, "A 0 0 0; A x x x; A y y z; A u u v"),
    "beta_manganese": Prototype(213, "A x x x; A 1/8 y z"),
    "rocksalt": Prototype(225, "A 0 0 0; B 1/2 1/2 1/2"),
    "cesium_chloride": Prototype(221, "A 0 0 0; B 1/2 1/2 1/2"),
    "zincblende": Prototype(216, "A 0 0 0; B 1/4 1/4 1/4"),
    "wurtzite": Prototype(186, "A 1/3 2/3 0; B 1/3 2/3 z"),
    "fluorite": Prototype(225, "A 0 0 0; B 1/4 1/4 1/4"),
    "rutile": Prototype(136, "A 0 0 0; B x x 0"),
    "anatase": Prototype(141, "A 0 3/4 1/8; B 0 1/4 z", 2),
    "brookite": Prototype(61, "A x y z; B p q r; B s t u"),
    "corundum": Prototype(167, "A 0 0 z; B x 0 1/4"),
    "ilmenite": Prototype(148, "A 0 0 u; B 0 0 v; C x y z"),
    "lithium_niobate": Prototype(161, "A 0 0 u; B 0 0 0; C x y z"),
    "perovskite": Prototype(221, "A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0"),
    "perovskite_tetragonal": Prototype(99, "A 0 0 0; B 1/2 1/2 u; C 1/2 1/2 v; C 1/2 0 w"),
    "perovskite_orthorhombic": Prototype(62, "A x 1/4 z; B 1/2 0 0; C u 1/4 v; C p q r"),
    "perovskite_rhombohedral": Prototype(167, "A 0 0 1/4; B 0 0 0; C x 0 1/4"),
    "aluminium_fluoride": Prototype(167, "A 0 0 0; B x 0 1/4"),
    "spinel": Prototype(227, "A 1/8 1/8 1/8; B 1/2 1/2 1/2; C x x x", 2),
    "cuprite": Prototype(224, "A 1/4 1/4 1/4; B 0 0 0", 1),
    "tenorite": Prototype(15, "A 1/4 1/4 0; B 0 y 1/4"),
    "cooperite": Prototype(131, "A 0 1/2 0; B 0 0 1/4"),
    "litharge": Prototype(129, "A 1/4 1/4 z; B 3/4 1/4 0", 2),
    "nickel_arsenide": Prototype(194, "A 0 0 0; B 1/3 2/3 1/4"),
    "cadmium_iodide": Prototype(164, "A 0 0 0; B 1/3 2/3 z"),
    "cadmium_chloride": Prototype(166, "A 0 0 0; B 0 0 z"),
    "molybdenite": Prototype(194, "A 1/3 2/3 1/4; B 1/3 2/3 z"),
    "gallium_sulfide": Prototype(194, "A 1/3 2/3 u; B 1/3 2/3 v"),
    "tin_sulfide": Prototype(62, "A x 1/4 z; B u 1/4 v"),
    "boron_nitride": Prototype(194, "A 1/3 2/3 1/4; B 1/3 2/3 3/4"),
    "tungsten_carbide": Prototype(187, "A 0 0 0; B 1/3 2/3 1/2"),
    "aluminium_diboride": Prototype(191, "A 0 0 0; B 1/3 2/3 1/2"),
    "calcium_hexaboride": Prototype(221, "A 0 0 0; B 1/2 1/2 x"),
    "laves_c15": Prototype(227, "A 1/8 1/8 1/8; B 1/2 1/2 1/2", 2),
    "laves_c14": Prototype(194, "A 1/3 2/3 z; B 0 0 0; B x -x 1/4"),
    "calcium_copper5": Prototype(191, "A 0 0 0; B 1/3 2/3 0; B 1/2 0 1/2"),
    "a15": Prototype(223, "A 1/4 0 1/2; B 0 0 0"),
    "l1_0": Prototype(123, "A 0 0 0; B 1/2 1/2 1/2"),
    "l1_2": Prototype(221, "A 0 1/2 1/2; B 0 0 0"),
    "b32": Prototype(227, "A 1/8 1/8 1/8; B 3/8 3/8 3/8", 2),
    "d0_3": Prototype(225, "A 1/4 1/4 1/4; A 1/2 1/2 1/2; B 0 0 0"),
    "heusler": Prototype(225, "A 1/4 1/4 1/4; B 1/2 1/2 1/2; C 0 0 0"),
    "half_heusler": Prototype(216, "A 0 0 0; B 1/4 1/4 1/4; C 1/2 1/2 1/2"),
    "pyrite": Prototype(205, "A 0 0 0; B x x x"),
    "marcasite": Prototype(58, "A 0 0 0; B x y 0"),
    "skutterudite": Prototype(204, "A 1/4 1/4 1/4; B 0 y z"),
    "molybdenum_trioxide": Prototype(62, "A x 1/4 z; B p 1/4 q; B r 1/4 s; B t 1/4 u"),
    "vanadium_pentoxide": Prototype(59, "A x 1/4 z; B p 1/4 q; B r 1/4 s; B 1/4 1/4 t", 2),
    "baddeleyite": Prototype(14, "A x y z; B p q r; B s t u"),
    "quartz": Prototype(154, "A x 0 2/3; B p q r"),
    "cristobalite": Prototype(92, "A x x 0; B p q r"),
    "berlinite": Prototype(152, "A x 0 1/3; B y 0 5/6; C p q r; C s t u"),
    "silicon_nitride": Prototype(176, "A x y 1/4; B 1/3 2/3 1/4; B p q 1/4"),
    "lanthanum_oxide": Prototype(164, "A 1/3 2/3 z; B 1/3 2/3 u; B 0 0 0"),
    "bixbyite": Prototype(206, "A 1/4 1/4 1/4; A u 0 1/4; B x y z"),
    "antibixbyite": Prototype(206, "A x y z; B 1/4 1/4 1/4; B u 0 1/4"),
    "scheelite": Prototype(88, "A 0 0 1/2; B 0 0 0; C x y z"),
    "zircon": Prototype(141, "A 0 3/4 1/8; B 0 1/4 3/8; C 0 y z", 2),
    "calcite": Prototype(167, "A 0 0 0; B 0 0 1/4; C x 0 1/4"),
    "dolomite": Prototype(148, "A 0 0 0; B 0 0 1/2; C 0 0 u; D x y z"),
    "aragonite": Prototype(62, "A x 1/4 z; B u 1/4 v; C p 1/4 q; C r s t"),
    "olivine": Prototype(62, "A 0 0 0; B x 1/4 z; C u 1/4 v; D p 1/4 q; D r 1/4 s; D l m n"),
    "pyroxene": Prototype(15, "A 0 w 1/4; B 0 v 1/4; C x y z; D a b c; D d e f; D p q r"),
    "baryte": Prototype(62, "A x 1/4 z; B u 1/4 v; C a 1/4 b; C c 1/4 d; C p q r"),
    "k2nif4": Prototype(139, "A 0 0 u; B 0 0 0; C 1/2 0 0; C 0 0 v"),
    "elpasolite": Prototype(225, "A 1/4 1/4 1/4; B 1/2 1/2 1/2; C 0 0 0; D x 0 0"),
    "k2ptcl6": Prototype(225, "A 1/4 1/4 1/4; B 0 0 0; C x 0 0"),
    "chalcopyrite": Prototype(122, "A 0 0 0; B 0 0 1/2; C x 1/4 1/8"),
    "kesterite": Prototype(82, "A 0 0 0; A 0 1/2 1/4; B 0 1/2 3/4; C 0 0 1/2; D x y z"),
    "stannite": Prototype(121, "A 0 1/2 1/4; B 0 0 0; C 0 0 1/2; D x x z"),
    "delafossite": Prototype(166, "A 0 0 0; B 0 0 1/2; C 0 0 z"),
    "layered_amx2": Prototype(166, "A 0 0 1/2; B 0 0 0; C 0 0 z"),
    "lithium_nitride": Prototype(191, "A 0 0 1/2; A 1/3 2/3 0; B 0 0 0"),
    "sodium_arsenide": Prototype(194, "A 0 0 1/4; A 1/3 2/3 z; B 1/3 2/3 1/4"),
    "peroxide": Prototype(139, "A 0 0 0; B 0 0 z"),
    "molybdenum_disilicide": Prototype(139, "A 0 0 0; B 0 0 z"),
    "titanium_disilicide": Prototype(70, "A 1/8 1/8 1/8; B x 1/8 1/8", 2),
    "iron_silicide": Prototype(198, "A x x x; B y y y"),
    "cementite": Prototype(62, "A x y z; A u 1/4 v; B p 1/4 q"),
    "iron_boride": Prototype(62, "A x 1/4 z; B u 1/4 v"),
    "iron_hemiboride": Prototype(140, "A x y 0; B 0 0 1/4"),
    "aluminium_carbide": Prototype(166, "A 0 0 x; A 0 0 y; B 0 0 0; B 0 0 z"),
    "gallium_oxide": Prototype(12, "A x 0 z; A u 1/2 v; B a 0 b; B c 0 d; B e 1/2 f"),
    "calcium_chloride": Prototype(58, "A 0 0 0; B x y 0"),
    "niobium_monoxide": Prototype(221, "A 0 1/2 1/2; B 1/2 0 0"),
    "iron_selenide": Prototype(129, "A 3/4 1/4 0; B 1/4 1/4 z", 2),
    "lifeas": Prototype(129, "A 1/4 1/4 u; B 3/4 1/4 1/2; C 1/4 1/4 v", 2),
    "zrcusias": Prototype(129, "A 1/4 1/4 u; B 3/4 1/4 1/2; C 1/4 1/4 v; D 3/4 1/4 0", 2),
    "thcr2si2": Prototype(139, "A 0 0 0; B 0 1/2 1/4; C 0 0 z"),
    "caal2si2": Prototype(164, "A 0 0 0; B 1/3 2/3 u; C 1/3 2/3 v"),
    "ybco": Prototype(
        47,
        "A 1/2 1/2 1/2; B 1/2 1/2 z; C 0 0 0; C 0 0 u; D 0 1/2 0; D 1/2 0 v; D 0 1/2 w; D 0 0 p",
    ),
    "antimony_telluride": Prototype(166, "A 0 0 u; B 0 0 0; B 0 0 v"),
    "lithium_aluminate": Prototype(92, "A x x 0; B y y 0; C p q r"),
    "lithium_gallate": Prototype(33, "A x y z; B p q 0; C a b c; C d e f"),
    "lanthanum_fluoride": Prototype(165, "A x 0 1/4; B p q r; B 1/3 2/3 s; B 0 0 1/4"),
}

CRYSTALS = """
Aluminium | Al | fcc | Al | 4.0495 | | c
Copper | Cu | fcc | Cu | 3.6149 | | c
Silver | Ag | fcc | Ag | 4.0857 | | c
Gold | Au | fcc | Au | 4.0782 | | c 2 2 2
Nickel | Ni | fcc | Ni | 3.5240 | | c
Palladium | Pd | fcc | Pd | 3.8907 | | c
Platinum | Pt | fcc | Pt | 3.9242 | | c 2 1 1
Calcium | Ca | fcc | Ca | 5.5884 | | c
Strontium | Sr | fcc | Sr | 6.0849 | | c
Lead | Pb | fcc | Pb | 4.9508 | | c
Lithium | Li | bcc | Li | 3.5093 | | c 2 2 2
Sodium | Na | bcc | Na | 4.2906 | | c
Potassium | K | bcc | K | 5.3210 | | c
Rubidium | Rb | bcc | Rb | 5.6100 | | c
Barium | Ba | bcc | Ba | 5.0230 | | c
Vanadium | V | bcc | V | 3.0240 | | c
Niobium | Nb | bcc | Nb | 3.3004 | | c
Chromium | Cr | bcc | Cr | 2.8848 | | c
Molybdenum | Mo | bcc | Mo | 3.1470 | | c
Tungsten | W | bcc | W | 3.1652 | | c
Iron | Fe | bcc | Fe | 2.8665 | | c 3 3 3
Magnesium | Mg | hcp | Mg | 3.2094 5.2108 | | p
Titanium | Ti | hcp | Ti | 2.9508 4.6855 | | p 2 2 1
Zirconium | Zr | hcp | Zr | 3.2316 5.1475 | | p
Zinc | Zn | hcp | Zn | 2.6650 4.9470 | | p
Cadmium | Cd | hcp | Cd | 2.9793 5.6196 | | p
Cobalt | Co | hcp | Co | 2.5071 4.0695 | | p
Yttrium | Y | hcp | Y | 3.6482 5.7318 | | p
Lanthanum | La | dhcp | La | 3.7740 12.1710 | | p
Diamond | C | diamond | C | 3.5669 | | c
Silicon | Si | diamond | Si | 5.4310 | | c 2 2 2
Germanium | Ge | diamond | Ge | 5.6579 | | c
Grey tin | Sn | diamond | Sn | 6.4892 | | p
White tin | Sn | beta_tin | Sn | 5.8316 3.1815 | | c
Indium | In | indium | In | 3.2523 4.9461 | | c
Trigonal selenium | Se | selenium | Se | 4.3662 4.9536 | 0.2254 | p
Tellurium | Te | selenium | Te | 4.4572 5.9290 | 0.2633 | p
Grey arsenic | As | arsenic | As | 3.7598 10.5475 | 0.2271 | c
Antimony | Sb | arsenic | Sb | 4.3084 11.2740 | 0.2335 | p
Black phosphorus | P | black_phosphorus | P | 3.3136 10.4780 4.3763 | 0.1017 0.0806 | c
Alpha gallium | Ga | black_phosphorus | Ga | 4.5192 7.6586 4.5258 | 0.1539 0.0810 | c
Graphite | C | graphite | C | 2.4610 6.7080 | | p
Alpha manganese | Mn | alpha_manganese | Mn | 8.9125 | 0.317 0.356 0.034 0.089 0.282 | c
Beta manganese | Mn | beta_manganese | Mn | 6.3150 | 0.0636 0.2022 0.4522 | p
Lithium fluoride | LiF | rocksalt | Li F | 4.0263 | | c
Lithium chloride | LiCl | rocksalt | Li Cl | 5.1396 | | c
Halite | NaCl | rocksalt | Na Cl | 5.6402 | | c 2 2 2
Sodium bromide | NaBr | rocksalt | Na Br | 5.9732 | | p
Sodium iodide | NaI | rocksalt | Na I | 6.4728 | | p
Villiaumite | NaF | rocksalt | Na F | 4.6340 | | c
Carobbiite | KF | rocksalt | K F | 5.3440 | | p
Sylvite | KCl | rocksalt | K Cl | 6.2931 | | c
Potassium bromide | KBr | rocksalt | K Br | 6.6005 | | p
Potassium iodide | KI | rocksalt | K I | 7.0656 | | p
Rubidium chloride | RbCl | rocksalt | Rb Cl | 6.5810 | | p
Rubidium iodide | RbI | rocksalt | Rb I | 7.3420 | | p
Chlorargyrite | AgCl | rocksalt | Ag Cl | 5.5491 | | p
Bromargyrite | AgBr | rocksalt | Ag Br | 5.7745 | | p
Periclase | MgO | rocksalt | Mg O | 4.2112 | | c 2 2 2
Lime | CaO | rocksalt | Ca O | 4.8105 | | c
Strontium oxide | SrO | rocksalt | Sr O | 5.1602 | | p
Barium oxide | BaO | rocksalt | Ba O | 5.5390 | | p
Manganosite | MnO | rocksalt | Mn O | 4.4448 | | c
Cobalt monoxide | CoO | rocksalt | Co O | 4.2600 | | p
Bunsenite | NiO | rocksalt | Ni O | 4.1769 | | c
Monteponite | CdO | rocksalt | Cd O | 4.6948 | | p
Oldhamite | CaS | rocksalt | Ca S | 5.6948 | | p
Strontium sulfide | SrS | rocksalt | Sr S | 6.0200 | | p
Barium sulfide | BaS | rocksalt | Ba S | 6.3860 | | p
Alabandite | MnS | rocksalt | Mn S | 5.2236 | | p
Galena | PbS | rocksalt | Pb S | 5.9362 | | c
Clausthalite | PbSe | rocksalt | Pb Se | 6.1240 | | p
Altaite | PbTe | rocksalt | Pb Te | 6.4600 | | p
Tin telluride | SnTe | rocksalt | Sn Te | 6.3200 | | p
Titanium carbide | TiC | rocksalt | Ti C | 4.3274 | | c
Zirconium carbide | ZrC | rocksalt | Zr C | 4.6980 | | p
Niobium carbide | NbC | rocksalt | Nb C | 4.4702 | | p
Osbornite | TiN | rocksalt | Ti N | 4.2410 | | p
Vanadium nitride | VN | rocksalt | V N | 4.1390 | | p
Carlsbergite | CrN | rocksalt | Cr N | 4.1490 | | p
Zirconium nitride | ZrN | rocksalt | Zr N | 4.5770 | | p
Cesium chloride | CsCl | cesium_chloride | Cs Cl | 4.1230 | | p
Cesium bromide | CsBr | cesium_chloride | Cs Br | 4.2900 | | p 2 2 2
Cesium iodide | CsI | cesium_chloride | Cs I | 4.5667 | | p
Sphalerite | ZnS | zincblende | Zn S | 5.4093 | | c
Stilleite | ZnSe | zincblende | Zn Se | 5.6687 | | p
Zinc telluride | ZnTe | zincblende | Zn Te | 6.1010 | | p
Cadmium telluride | CdTe | zincblende | Cd Te | 6.4810 | | p
Gallium arsenide | GaAs | zincblende | Ga As | 5.6533 | | c 2 2 1
Gallium phosphide | GaP | zincblende | Ga P | 5.4505 | | p
Gallium antimonide | GaSb | zincblende | Ga Sb | 6.0959 | | p
Aluminium arsenide | AlAs | zincblende | Al As | 5.6611 | | p
Aluminium phosphide | AlP | zincblende | Al P | 5.4600 | | p
Aluminium antimonide | AlSb | zincblende | Al Sb | 6.1355 | | p
Indium phosphide | InP | zincblende | In P | 5.8687 | | c
Indium arsenide | InAs | zincblende | In As | 6.0583 | | p
Indium antimonide | InSb | zincblende | In Sb | 6.4794 | | p
Cubic boron nitride | BN | zincblende | B N | 3.6157 | | c
Boron phosphide | BP | zincblende | B P | 4.5380 | | p
Cubic silicon carbide | SiC | zincblende | Si C | 4.3596 | | c
Nantokite | CuCl | zincblende | Cu Cl | 5.4160 | | p
Copper bromide | CuBr | zincblende | Cu Br | 5.6905 | | p
Marshite | CuI | zincblende | Cu I | 6.0500 | | p
Zincite | ZnO | wurtzite | Zn O | 3.2498 5.2066 | 0.3819 | p
Wurtzite | ZnS | wurtzite | Zn S | 3.8227 6.2607 | 0.3748 | p
Greenockite | CdS | wurtzite | Cd S | 4.1367 6.7161 | 0.3770 | p
Cadmoselite | CdSe | wurtzite | Cd Se | 4.2999 7.0109 | 0.3767 | p
Gallium nitride | GaN | wurtzite | Ga N | 3.1890 5.1850 | 0.3770 | p 2 2 2
Aluminium nitride | AlN | wurtzite | Al N | 3.1110 4.9790 | 0.3821 | p
Indium nitride | InN | wurtzite | In N | 3.5378 5.7033 | 0.3790 | p
Iodargyrite | AgI | wurtzite | Ag I | 4.5920 7.5100 | 0.3747 | p
Fluorite | CaF2 | fluorite | Ca F | 5.4626 | | c
Strontium fluoride | SrF2 | fluorite | Sr F | 5.7996 | | p
Frankdicksonite | BaF2 | fluorite | Ba F | 6.2001 | | p
Cadmium fluoride | CdF2 | fluorite | Cd F | 5.3880 | | p
Strontium chloride | SrCl2 | fluorite | Sr Cl | 6.9767 | | p
Cobalt disilicide | CoSi2 | fluorite | Co Si | 5.3650 | | p
Nickel disilicide | NiSi2 | fluorite | Ni Si | 5.4060 | | p
Purple gold | AuAl2 | fluorite | Au Al | 5.9980 | | p
Lithium oxide | Li2O | fluorite | O Li | 4.6190 | | c
Sodium oxide | Na2O | fluorite | O Na | 5.5500 | | p
Potassium oxide | K2O | fluorite | O K | 6.4360 | | p
Lithium sulfide | Li2S | fluorite | S Li | 5.7140 | | p
Sodium sulfide | Na2S | fluorite | S Na | 6.5350 | | p
Magnesium silicide | Mg2Si | fluorite | Si Mg | 6.3510 | | c
Magnesium stannide | Mg2Sn | fluorite | Sn Mg | 6.7620 | | p
Rutile | TiO2 | rutile | Ti O | 4.5937 2.9587 | 0.3048 | p
Cassiterite | SnO2 | rutile | Sn O | 4.7374 3.1864 | 0.3056 | p
Pyrolusite | MnO2 | rutile | Mn O | 4.3999 2.8740 | 0.3046 | p
Argutite | GeO2 | rutile | Ge O | 4.3975 2.8625 | 0.3059 | p
Plattnerite | PbO2 | rutile | Pb O | 4.9560 3.3860 | 0.3067 | p
Stishovite | SiO2 | rutile | Si O | 4.1790 2.6651 | 0.3062 | p
Sellaite | MgF2 | rutile | Mg F | 4.6213 3.0519 | 0.3030 | p 2 2 2
Zinc fluoride | ZnF2 | rutile | Zn F | 4.7034 3.1335 | 0.3030 | p
Manganese fluoride | MnF2 | rutile | Mn F | 4.8734 3.3099 | 0.3050 | p
Iron fluoride | FeF2 | rutile | Fe F | 4.6966 3.3091 | 0.3010 | p
Nickel fluoride | NiF2 | rutile | Ni F | 4.6506 3.0836 | 0.3020 | p
Anatase | TiO2 | anatase | Ti O | 3.7845 9.5143 | 0.0831 | c
Brookite | TiO2 | brookite | Ti O | 9.1840 5.4470 5.1450 | 0.1289 0.0972 0.8628 0.0095 0.1491 0.1835 0.2314 0.1110 0.5366 | p
Corundum | Al2O3 | corundum | Al O | 4.7589 12.9910 | 0.3523 0.3064 | c
Hematite | Fe2O3 | corundum | Fe O | 5.0356 13.7489 | 0.3553 0.3059 | p
Eskolaite | Cr2O3 | corundum | Cr O | 4.9607 13.5990 | 0.3475 0.3058 | p
Karelianite | V2O3 | corundum | V O | 4.9515 14.0030 | 0.3463 0.3118 | p
Ilmenite | FeTiO3 | ilmenite | Fe Ti O | 5.0884 14.0855 | 0.3554 0.1465 0.3174 0.0233 0.2451 | p
Geikielite | MgTiO3 | ilmenite | Mg Ti O | 5.0548 13.8992 | 0.3556 0.1450 0.3159 0.0215 0.2465 | c
Lithium niobate | LiNbO3 | lithium_niobate | Li Nb O | 5.1483 13.8631 | 0.2787 0.0492 0.3446 0.0647 | p
Tausonite | SrTiO3 | perovskite | Sr Ti O | 3.9051 | | p 2 2 2
Barium zirconate | BaZrO3 | perovskite | Ba Zr O | 4.1930 | | p
Potassium zinc fluoride | KZnF3 | perovskite | K Zn F | 4.0550 | | p
Potassium manganese fluoride | KMnF3 | perovskite | K Mn F | 4.1900 | | p
Potassium nickel fluoride | KNiF3 | perovskite | K Ni F | 4.0120 | | p 2 2 1
Barium titanate | BaTiO3 | perovskite_tetragonal | Ba Ti O | 3.9945 4.0335 | 0.5224 -0.0244 0.4895 | p
Macedonite | PbTiO3 | perovskite_tetragonal | Pb Ti O | 3.9040 4.1520 | 0.5377 0.1118 0.6174 | p
Perovskite | CaTiO3 | perovskite_orthorhombic | Ca Ti O | 5.4423 7.6401 5.3796 | 0.0356 0.9932 0.4838 0.0714 0.2888 0.0371 0.7108 | p
Neighborite | NaMgF3 | perovskite_orthorhombic | Na Mg F | 5.4884 7.6660 5.3603 | 0.0443 0.9893 0.4710 0.0896 0.2952 0.0474 0.7030 | p
Lanthanum aluminate | LaAlO3 | perovskite_rhombohedral | La Al O | 5.3647 13.1114 | 0.5253 | p
Aluminium fluoride | AlF3 | aluminium_fluoride | Al F | 4.9305 12.4462 | 0.4275 | p
Spinel | MgAl2O4 | spinel | Mg Al O | 8.0832 | 0.2624 | c
Gahnite | ZnAl2O4 | spinel | Zn Al O | 8.0860 | 0.2636 | p
Magnetite | Fe3O4 | spinel | Fe Fe O | 8.3941 | 0.2548 | p
Cobalt spinel | Co3O4 | spinel | Co Co O | 8.0835 | 0.2631 | p
Zincochromite | ZnCr2O4 | spinel | Zn Cr O | 8.3275 | 0.2616 | p
Franklinite | ZnFe2O4 | spinel | Zn Fe O | 8.4411 | 0.2604 | p
Lithium manganate | LiMn2O4 | spinel | Li Mn O | 8.2476 | 0.2625 | p
Ringwoodite | Mg2SiO4 | spinel | Si Mg O | 8.0649 | 0.2441 | p
Cuprite | Cu2O | cuprite | Cu O | 4.2696 | | p
Silver oxide | Ag2O | cuprite | Ag O | 4.7250 | | p
Tenorite | CuO | tenorite | Cu O | 4.6837 3.4226 5.1288 99.54 | 0.4184 | c
Palladinite | PdO | cooperite | Pd O | 3.0434 5.3365 | | p
Cooperite | PtS | cooperite | Pt S | 3.4700 6.1096 | | p
Romarchite | SnO | litharge | Sn O | 3.8029 4.8382 | 0.2383 | p
Litharge | PbO | litharge | Pb O | 3.9759 5.0230 | 0.2351 | p
Nickeline | NiAs | nickel_arsenide | Ni As | 3.6190 5.0340 | | p
Breithauptite | NiSb | nickel_arsenide | Ni Sb | 3.9380 5.1380 | | p
Manganese telluride | MnTe | nickel_arsenide | Mn Te | 4.1480 6.7110 | | p
Niggliite | PtSn | nickel_arsenide | Pt Sn | 4.1000 5.4320 | | p
Cadmium iodide | CdI2 | cadmium_iodide | Cd I | 4.2445 6.8642 | 0.2492 | p
Lead iodide | PbI2 | cadmium_iodide | Pb I | 4.5570 6.9790 | 0.2675 | p
Berndtite | SnS2 | cadmium_iodide | Sn S | 3.6486 5.8992 | 0.2500 | p
Titanium disulfide | TiS2 | cadmium_iodide | Ti S | 3.4073 5.6953 | 0.2501 | p 2 2 1
Titanium diselenide | TiSe2 | cadmium_iodide | Ti Se | 3.5400 6.0080 | 0.2555 | p
Zirconium disulfide | ZrS2 | cadmium_iodide | Zr S | 3.6620 5.8130 | 0.2480 | p
Sudovikovite | PtSe2 | cadmium_iodide | Pt Se | 3.7278 5.0813 | 0.2550 | p
Moncheite | PtTe2 | cadmium_iodide | Pt Te | 4.0259 5.2209 | 0.2540 | p
Chloromagnesite | MgCl2 | cadmium_chloride | Mg Cl | 3.6363 17.6663 | 0.2578 | c
Cadmium chloride | CdCl2 | cadmium_chloride | Cd Cl | 3.8460 17.4790 | 0.2522 | p
Nickel chloride | NiCl2 | cadmium_chloride | Ni Cl | 3.4830 17.4000 | 0.2550 | p
Molybdenite | MoS2 | molybdenite | Mo S | 3.1604 12.2950 | 0.6210 | p 2 2 1
Drysdallite | MoSe2 | molybdenite | Mo Se | 3.2890 12.9270 | 0.6210 | p
Tungstenite | WS2 | molybdenite | W S | 3.1532 12.3230 | 0.6225 | p
Tungsten diselenide | WSe2 | molybdenite | W Se | 3.2820 12.9600 | 0.6211 | p
Gallium sulfide | GaS | gallium_sulfide | Ga S | 3.5870 15.4920 | 0.1710 0.6020 | p
Herzenbergite | SnS | tin_sulfide | Sn S | 11.2000 3.9870 4.3340 | 0.1194 0.1198 0.8508 0.4793 | p
Tin selenide | SnSe | tin_sulfide | Sn Se | 11.4980 4.1530 4.4400 | 0.1184 0.1035 0.8548 0.4819 | p
Hexagonal boron nitride | BN | boron_nitride | B N | 2.5040 6.6610 | | p 2 2 1
Tungsten carbide | WC | tungsten_carbide | W C | 2.9065 2.8366 | | p
Magnesium diboride | MgB2 | aluminium_diboride | Mg B | 3.0862 3.5244 | | p
Titanium diboride | TiB2 | aluminium_diboride | Ti B | 3.0303 3.2291 | | p
Zirconium diboride | ZrB2 | aluminium_diboride | Zr B | 3.1687 3.5300 | | p
Lanthanum hexaboride | LaB6 | calcium_hexaboride | La B | 4.1566 | 0.1997 | p
Calcium hexaboride | CaB6 | calcium_hexaboride | Ca B | 4.1522 | 0.2019 | p
Magnesium copper Laves phase | MgCu2 | laves_c15 | Mg Cu | 7.0400 | | p
Yttrium dialuminide | YAl2 | laves_c15 | Y Al | 7.8580 | | c
Zirconium dicobalt | ZrCo2 | laves_c15 | Zr Co | 6.9510 | | p
Magnesium zinc Laves phase | MgZn2 | laves_c14 | Mg Zn | 5.2210 8.5670 | 0.0625 0.8300 | p
Lanthanum pentanickel | LaNi5 | calcium_copper5 | La Ni | 5.0150 3.9850 | | p
Niobium stannide | Nb3Sn | a15 | Nb Sn | 5.2893 | | p
Vanadium silicide | V3Si | a15 | V Si | 4.7250 | | p
Copper gold I | CuAu | l1_0 | Cu Au | 2.8040 3.6730 | | p
Gamma titanium aluminide | TiAl | l1_0 | Ti Al | 2.8300 4.0700 | | p
Tetraferroplatinum | FePt | l1_0 | Fe Pt | 2.7238 3.7130 | | p
Auricupride | Cu3Au | l1_2 | Cu Au | 3.7490 | | p
Nickel aluminide gamma prime | Ni3Al | l1_2 | Ni Al | 3.5720 | | p 2 2 2
Awaruite | Ni3Fe | l1_2 | Ni Fe | 3.5520 | | p
Nickel aluminide | NiAl | cesium_chloride | Ni Al | 2.8870 | | p
Cobalt aluminide | CoAl | cesium_chloride | Co Al | 2.8620 | | p
Iron aluminide | FeAl | cesium_chloride | Fe Al | 2.9090 | | p 3 3 3
Iron titanium | FeTi | cesium_chloride | Fe Ti | 2.9760 | | p
Beta brass | CuZn | cesium_chloride | Cu Zn | 2.9530 | | p
Magnesium silver | MgAg | cesium_chloride | Mg Ag | 3.3120 | | p
Lithium aluminide | LiAl | b32 | Li Al | 6.3700 | | p
Triiron aluminide | Fe3Al | d0_3 | Fe Al | 5.7920 | | p
Heusler alloy | Cu2MnAl | heusler | Cu Mn Al | 5.9530 | | c
Cobalt manganese silicide | Co2MnSi | heusler | Co Mn Si | 5.6500 | | p
Iron vanadium aluminide | Fe2VAl | heusler | Fe V Al | 5.7600 | | p
Titanium nickel stannide | TiNiSn | half_heusler | Ti Ni Sn | 5.9300 | | p
Zirconium nickel stannide | ZrNiSn | half_heusler | Zr Ni Sn | 6.1120 | | p
Nickel manganese antimonide | NiMnSb | half_heusler | Mn Ni Sb | 5.9200 | | p
Titanium cobalt antimonide | TiCoSb | half_heusler | Ti Co Sb | 5.8840 | | p
Pyrite | FeS2 | pyrite | Fe S | 5.4179 | 0.3847 | p
Cattierite | CoS2 | pyrite | Co S | 5.5385 | 0.3899 | p
Vaesite | NiS2 | pyrite | Ni S | 5.6873 | 0.3945 | p
Sperrylite | PtAs2 | pyrite | Pt As | 5.9670 | 0.3830 | p
Marcasite | FeS2 | marcasite | Fe S | 4.4446 5.4246 3.3864 | 0.2000 0.3782 | p
Skutterudite | CoAs3 | skutterudite | Co As | 8.2043 | 0.3442 0.1514 | c
Cobalt triantimonide | CoSb3 | skutterudite | Co Sb | 9.0385 | 0.3351 0.1602 | p
Molybdite | MoO3 | molybdenum_trioxide | Mo O | 13.8550 3.6964 3.9628 | 0.1016 0.0867 0.4351 0.4994 0.0866 0.5212 0.2214 0.0373 | p
Shcherbinaite | V2O5 | vanadium_pentoxide | V O | 11.5120 3.5640 4.3680 | 0.10118 0.8917 0.1043 0.5310 0.9311 0.0030 0.0010 | p
Baddeleyite | ZrO2 | baddeleyite | Zr O | 5.1505 5.2116 5.3173 99.23 | 0.2754 0.0395 0.2083 0.0700 0.3317 0.3447 0.4496 0.7569 0.4792 | p
Alpha quartz | SiO2 | quartz | Si O | 4.9134 5.4052 | 0.4697 0.4135 0.2669 0.7858 | p
Cristobalite | SiO2 | cristobalite | Si O | 4.9717 6.9223 | 0.3003 0.2392 0.1044 0.1787 | p
Berlinite | AlPO4 | berlinite | Al P O | 4.9430 10.9600 | 0.4664 0.4669 0.4163 0.2922 0.3976 0.4156 0.2576 0.8836 | p
Beta silicon nitride | Si3N4 | silicon_nitride | Si N | 7.6080 2.9110 | 0.1744 0.7690 0.3299 0.0298 | p
Lanthanum oxide | La2O3 | lanthanum_oxide | La O | 3.9373 6.1299 | 0.2454 0.6471 | p
Yttrium oxide | Y2O3 | bixbyite | Y O | 10.6040 | 0.9673 0.3907 0.1520 0.3804 | p
Magnesium nitride | Mg3N2 | antibixbyite | Mg N | 9.9528 | 0.3890 0.1530 0.3820 0.9690 | p
Scheelite | CaWO4 | scheelite | Ca W O | 5.2430 11.3760 | 0.2415 0.1504 0.0861 | p
Powellite | CaMoO4 | scheelite | Ca Mo O | 5.2260 11.4300 | 0.2428 0.1465 0.0826 | p
Zircon | ZrSiO4 | zircon | Zr Si O | 6.6070 5.9820 | 0.0661 0.1953 | p
Xenotime | YPO4 | zircon | Y P O | 6.8817 6.0177 | 0.0753 0.2158 | c
Calcite | CaCO3 | calcite | Ca C O | 4.9900 17.0610 | 0.2569 | c
Magnesite | MgCO3 | calcite | Mg C O | 4.6328 15.0129 | 0.2778 | p
Siderite | FeCO3 | calcite | Fe C O | 4.6916 15.3796 | 0.2743 | p
Smithsonite | ZnCO3 | calcite | Zn C O | 4.6526 15.0257 | 0.2764 | p
Nitratine | NaNO3 | calcite | Na N O | 5.0700 16.8200 | 0.2450 | p
Dolomite | CaMgC2O6 | dolomite | Ca Mg C O | 4.8069 16.0034 | 0.2428 0.2480 -0.0354 0.2439 | p
Aragonite | CaCO3 | aragonite | Ca C O | 5.7404 4.9614 7.9671 | 0.7595 0.4151 0.9148 0.7627 0.9041 0.9222 0.9128 0.4729 0.6801 | p
Forsterite | Mg2SiO4 | olivine | Mg Mg Si O | 10.1943 5.9807 4.7535 | 0.2774 0.9915 0.0940 0.4262 0.0913 0.7657 0.4474 0.2215 0.1628 0.0331 0.2777 | p
Triphylite | LiFePO4 | olivine | Li Fe P O | 10.3290 6.0065 4.6908 | 0.2822 0.9747 0.0949 0.4182 0.0968 0.7428 0.4571 0.2060 0.1656 0.0465 0.2848 | p
Diopside | CaMgSi2O6 | pyroxene | Mg Ca Si O | 9.7460 8.8990 5.2510 105.63 | 0.9082 0.3015 0.2862 0.0933 0.2293 0.1156 0.0873 0.1422 0.3611 0.2500 0.3180 0.3505 0.0176 0.9953 | p
Jadeite | NaAlSi2O6 | pyroxene | Al Na Si O | 9.4230 8.5640 5.2230 107.56 | 0.9058 0.3005 0.2906 0.0933 0.2277 0.1090 0.0763 0.1275 0.3611 0.2633 0.2932 0.3538 0.0072 0.0060 | p
Baryte | BaSO4 | baryte | Ba S O | 8.8840 5.4560 7.1570 | 0.1845 0.1584 0.5625 0.8092 0.4130 0.8938 0.6824 0.9503 0.5806 0.0298 0.6878 | p
Potassium tetrafluoronickelate | K2NiF4 | k2nif4 | K Ni F | 4.0100 13.0800 | 0.3521 0.1511 | p
Strontium titanate 214 | Sr2TiO4 | k2nif4 | Sr Ti O | 3.8850 12.5934 | 0.3548 0.1524 | p
Elpasolite | K2NaAlF6 | elpasolite | K Na Al F | 8.1200 | 0.2210 | p
Potassium hexachloroplatinate | K2PtCl6 | k2ptcl6 | K Pt Cl | 9.7530 | 0.2400 | c
Chalcopyrite | CuFeS2 | chalcopyrite | Cu Fe S | 5.2890 10.4230 | 0.2574 | p
Copper indium diselenide | CuInSe2 | chalcopyrite | Cu In Se | 5.7820 11.6190 | 0.2260 | c
Copper gallium disulfide | CuGaS2 | chalcopyrite | Cu Ga S | 5.3500 10.4800 | 0.2539 | p
Silver gallium disulfide | AgGaS2 | chalcopyrite | Ag Ga S | 5.7570 10.3040 | 0.2911 | p
Zinc germanium diphosphide | ZnGeP2 | chalcopyrite | Zn Ge P | 5.4660 10.7220 | 0.2582 | p
Kesterite | Cu2ZnSnS4 | kesterite | Cu Zn Sn S | 5.4270 10.8710 | 0.2440 0.2434 0.1278 | p
Stannite | Cu2FeSnS4 | stannite | Cu Fe Sn S | 5.4495 10.7410 | 0.2449 0.1298 | c
Copper aluminate | CuAlO2 | delafossite | Cu Al O | 2.8580 16.9580 | 0.1099 | c
Delafossite | CuFeO2 | delafossite | Cu Fe O | 3.0351 17.1660 | 0.1068 | p
Lithium cobaltate | LiCoO2 | layered_amx2 | Li Co O | 2.8160 14.0520 | 0.2605 | c 2 2 1
Sodium ferrite | NaFeO2 | layered_amx2 | Na Fe O | 3.0240 16.0900 | 0.2660 | p
Sodium chromite | NaCrO2 | layered_amx2 | Na Cr O | 2.9747 15.9600 | 0.2670 | p
Lithium nitride | Li3N | lithium_nitride | Li N | 3.6510 3.8750 | | p
Sodium phosphide | Na3P | sodium_arsenide | Na P | 4.9850 8.8060 | 0.5830 | p
Barium peroxide | BaO2 | peroxide | Ba O | 3.8130 6.8450 | 0.3920 | c
Molybdenum disilicide | MoSi2 | molybdenum_disilicide | Mo Si | 3.2050 7.8460 | 0.3353 | c
Titanium disilicide | TiSi2 | titanium_disilicide | Ti Si | 8.2671 4.8000 8.5505 | 0.4615 | p
Fersilicite | FeSi | iron_silicide | Fe Si | 4.4880 | 0.1370 0.8420 | p
Cementite | Fe3C | cementite | Fe C | 5.0897 6.7434 4.5235 | 0.1816 0.0666 0.3374 0.0367 0.8402 0.8770 0.4440 | p
Iron boride | FeB | iron_boride | Fe B | 5.5000 2.9500 4.0580 | 0.1800 0.1250 0.0360 0.6100 | p
Iron hemiboride | Fe2B | iron_hemiboride | Fe B | 5.1100 4.2490 | 0.1661 0.6661 | p
Aluminium carbide | Al4C3 | aluminium_carbide | Al C | 3.3370 24.9800 | 0.2942 0.1297 0.2168 | p
Beta gallium oxide | Ga2O3 | gallium_oxide | Ga O | 12.2200 3.0390 5.8000 103.77 | 0.0905 0.7946 0.1587 0.3140 0.1645 0.1098 0.1733 0.5632 0.9959 0.2566 | c
Hydrophilite | CaCl2 | calcium_chloride | Ca Cl | 6.2500 6.4400 4.1850 | 0.2750 0.3250 | p
Niobium monoxide | NbO | niobium_monoxide | Nb O | 4.2104 | | p
Iron selenide | FeSe | iron_selenide | Fe Se | 3.7700 5.5220 | 0.2672 | p
Lithium iron arsenide | LiFeAs | lifeas | Li Fe As | 3.7830 6.3590 | 0.8459 0.2635 | p
Lanthanum iron oxyarsenide | LaFeAsO | zrcusias | La Fe As O | 4.0340 8.7400 | 0.1415 0.6512 | p
Barium iron arsenide | BaFe2As2 | thcr2si2 | Ba Fe As | 3.9628 13.0190 | 0.3545 | p
Magnesium antimonide | Mg3Sb2 | caal2si2 | Mg Mg Sb | 4.5630 7.2360 | 0.6340 0.2300 | p
YBCO | YBa2Cu3O7 | ybco | Y Ba Cu O | 3.8227 3.8872 11.6802 | 0.1843 0.3556 0.3773 0.3789 0.1584 | p 2 2 1
Antimony telluride | Sb2Te3 | antimony_telluride | Sb Te | 4.2640 30.4580 | 0.3988 0.7872 | p
Gamma lithium aluminate | LiAlO2 | lithium_aluminate | Li Al O | 5.1687 6.2679 | 0.8126 0.1759 0.3369 0.2906 0.7723 | p
Lithium gallate | LiGaO2 | lithium_gallate | Li Ga O | 5.4020 6.3720 5.0070 | 0.4207 0.1267 0.4936 0.0821 0.1263 0.4066 0.1388 0.8927 0.0697 0.1121 0.3708 | p
Fluocerite | LaF3 | lanthanum_fluoride | La F | 7.1850 7.3510 | 0.6598 0.3659 0.0536 0.0813 0.1859 | p
"""  # noqa: E501


def read_table(text: str = CRYSTALS) -> list[Crystal]:
    """Parse the table: one crystal per line, seven fields, lattice in Å and degrees."""
    crystals = []
    for line in text.strip().splitlines():
        name, formula, prototype, elements, lattice, free, cell = (
            field.strip() for field in line.split("|")
        )
        crystals.append(
            Crystal(
                name=name,
                formula=formula,
                prototype=prototype,
                elements=tuple(elements.split()),
                lattice=tuple(float(value) for value in lattice.split()),
                free=tuple(float(value) for value in free.split()),
                cell=cell,
            )
        )
    return crystals


def place_sites(
    prototype: Prototype, elements: tuple[str, ...], free: tuple[float, ...]
) -> tuple[list[str], list[list[float]]]:
    """Elements and fractional coordinates of the independent positions.

    Args:
        free: values of the free letters, in the order of their first appearance.
    """
    values: dict[str, float] = {}
    left = list(free)
    symbols, coordinates = [], []
    for site in prototype.sites.split(";"):
        slot, *tokens = site.split()
        point = []
        for token in tokens:
            letter = token.removeprefix("-")
            if letter.isalpha() and letter not in values:
                values[letter] = left.pop(0)
            number = values[letter] if letter.isalpha() else float(Fraction(letter))
            point.append(-number if token.startswith("-") else number)
        symbols.append(elements["ABCD".index(slot)])
        coordinates.append(point)
    if left:
        raise ValueError(f"{len(left)} coordinates too many for {prototype.sites!r}.")
    return symbols, coordinates


def cell_parameters(space_group: int, lattice: tuple[float, ...]) -> list[float]:
    """The six cell parameters (Å, degrees) from the independent ones of the crystal system."""
    if space_group >= 195:
        (a,) = lattice
        return [a, a, a, 90, 90, 90]
    if space_group >= 143:
        a, c = lattice
        return [a, a, c, 90, 90, 120]
    if space_group >= 75:
        a, c = lattice
        return [a, a, c, 90, 90, 90]
    if space_group >= 16:
        return [*lattice, 90, 90, 90]
    a, b, c, beta = lattice
    return [a, b, c, 90, beta, 90]


def primitive_cell(atoms: Atoms) -> Atoms:
    """The primitive cell that spglib's convention gives, right-handed and at the same volume."""
    cell = (np.asarray(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=False, symprec=1e-3)
    lattice, fractional, numbers = found
    return Atoms(numbers=numbers, scaled_positions=fractional, cell=lattice, pbc=True)


def build_prototype(
    prototype: str, elements: tuple[str, ...], lattice: tuple[float, ...], free: tuple[float, ...]
) -> Atoms:
    """The conventional cell of a decorated prototype; lattice in Å and degrees."""
    record = PROTOTYPES[prototype]
    symbols, coordinates = place_sites(record, elements, free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE reports its own rounding of special positions
        atoms = crystal_of_space_group(
            symbols,
            basis=coordinates,
            spacegroup=record.space_group,
            setting=record.setting,
            cellpar=cell_parameters(record.space_group, lattice),
        )
    return Atoms(
        numbers=atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell, pbc=1
    )


def build_crystal(crystal: Crystal) -> Atoms:
    """One labelled crystal: positions and cell in Å, its identity in `info`."""
    atoms = build_prototype(crystal.prototype, crystal.elements, crystal.lattice, crystal.free)
    kind, *repeats = crystal.cell.split()
    if kind == "p":
        atoms = primitive_cell(atoms)
    if repeats:
        atoms = atoms.repeat([int(count) for count in repeats])
    atoms.wrap(eps=1e-6)
    atoms.info = {
        "name": crystal.name,
        "formula": crystal.formula,
        "prototype": crystal.prototype,
        "space_group": PROTOTYPES[crystal.prototype].space_group,
        "source": SOURCE,
    }
    return atoms


def compact(text: str) -> str:
    """Extxyz text without padding, numbers to 1e-5: positions and cell in Å keep their symmetry."""
    short = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]) + 0.0:.5f}", text)
    short = re.sub(r"-(0\.0+)\b", r"\1", short)
    short = re.sub(r"(\.\d+?)0+\b", r"\1", short)
    return re.sub(r" +", " ", short)


def main(arguments: list[str]) -> None:
    """Write every crystal of the table to one extxyz file."""
    output = Path(arguments[0]) if arguments else DEFAULT_OUTPUT
    output.parent.mkdir(parents=True, exist_ok=True)
    frames = [build_crystal(crystal) for crystal in read_table()]
    buffer = io.StringIO()
    write(buffer, frames, format="extxyz")
    output.write_text(compact(buffer.getvalue()))
    print(f"{output}: {len(frames)} crystals, {sum(map(len, frames))} atoms", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
