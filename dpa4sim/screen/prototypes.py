"""Prototypes: crystal structures with their elements taken out, as a table.

One line of `TABLE` is one prototype: name | Strukturbericht | compound | space group | slots |
sites | lattice parameters (Å, degrees) | free coordinates (fractional).

A slot is a capital letter.  Its elements come from the compound in the slots' order, with a sign:
`+` a cation, `-` an anion, `=` an anion bonded to one of its like (S2^2-: one electron fewer each),
`:` to two of its like, `0` no charge.  After the slots, `~`: without charges too, where the anions'
slots hold elements of the p block (PtSn, CoSi2); `*`: without charges too, whatever they hold;
`AB`: these two slots may hold the same element, in two oxidation states or one.

The lattice parameters are the independent ones of the crystal system (a; a c; a b c; a b c beta).
Letters in the sites are free coordinates, valued in the order of their first appearance.  Space
groups with two origins are written with that at the inversion centre, R groups in hexagonal axes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from ase import Atoms
from ase.spacegroup import crystal

from dpa4sim.errors import ConfigError
from dpa4sim.screen.symmetry import primitive_cell

TWO_ORIGINS = frozenset(
    (48, 50, 59, 68, 70, 85, 86, 88, 125, 126, 129, 130, 133, 134, 137, 138, 141, 142, 201, 203)
) | {222, 224, 227, 228}
"""Space groups whose second setting of ASE has its origin at the inversion centre."""

TABLE = """
rocksalt | B1 | Na+ Cl- ~ | 225 | A 0 0 0; B 1/2 1/2 1/2 | 5.6402 |
cesium_chloride | B2 | Cs+ Cl- * | 221 | A 0 0 0; B 1/2 1/2 1/2 | 4.1230 |
zincblende | B3 | Zn+ S- ~ | 216 | A 0 0 0; B 1/4 1/4 1/4 | 5.4093 |
wurtzite | B4 | Zn+ S- | 186 | A 1/3 2/3 0; B 1/3 2/3 z | 3.8227 6.2607 | 0.3748
nickel_arsenide | B8_1 | Ni+ As- ~ | 194 | A 0 0 0; B 1/3 2/3 1/4 | 3.6190 5.0340 |
tungsten_carbide | B_h | W+ C- ~ | 187 | A 0 0 0; B 1/3 2/3 1/2 | 2.9065 2.8366 |
litharge | B10 | Pb+ O- | 129 | A 1/4 1/4 z; B 3/4 1/4 0 | 3.9759 5.0230 | 0.2351
cooperite | B17 | Pt+ S- | 131 | A 0 1/2 0; B 0 0 1/4 | 3.4700 6.1096 |
tenorite | B26 | Cu+ O- | 15 | A 1/4 1/4 0; B 0 y 1/4 | 4.6837 3.4226 5.1288 99.54 | 0.4184
tin_sulfide | B29 | Sn+ S- | 62 | A x 1/4 z; B u 1/4 v | 11.2000 3.9870 4.3340 | 0.1194 0.1198 0.8508 0.4793
millerite | B13 | Ni+ S- | 160 | A x -x z; B u -u v | 9.6190 3.1499 | 0.9122 0.0880 0.4457 0.2831
boron_nitride | B_k | B+ N- | 194 | A 1/3 2/3 1/4; B 1/3 2/3 3/4 | 2.5040 6.6610 |
gallium_sulfide | - | Ga+ S- | 194 | A 1/3 2/3 u; B 1/3 2/3 v | 3.5870 15.4920 | 0.1710 0.6020
iron_silicide | B20 | Fe0 Si0 | 198 | A x x x; B y y y | 4.4880 | 0.1370 0.8420
zintl | B32 | Na0 Tl0 | 227 | A 1/8 1/8 1/8; B 3/8 3/8 3/8 | 7.4880 |
copper_gold | L1_0 | Cu0 Au0 | 123 | A 0 0 0; B 1/2 1/2 1/2 | 2.8040 3.6730 |
copper_titanium | B11 | Ti0 Cu0 | 129 | A 1/4 1/4 u; B 1/4 1/4 v | 3.1070 5.9190 | 0.6500 0.1000
gold_cadmium | B19 | Au0 Cd0 | 51 | A 1/4 0 u; B 1/4 1/2 v | 4.7549 3.1476 4.8546 | 0.1875 0.6875
iron_boride | B27 | Fe0 B0 | 62 | A x 1/4 z; B u 1/4 v | 5.5000 2.9500 4.0580 | 0.1800 0.1250 0.0360 0.6100
chromium_boride | B33 | Cr0 B0 | 63 | A 0 y 1/4; B 0 v 1/4 | 2.9782 7.8700 2.9346 | 0.1452 0.4360
manganese_phosphide | B31 | Mn0 P0 | 62 | A x 1/4 z; B u 1/4 v | 5.2416 3.1802 5.9032 | 0.0056 0.1952 0.1879 0.5696
fluorite | C1 | Ca+ F- ~ | 225 | A 0 0 0; B 1/4 1/4 1/4 | 5.4626 |
antifluorite | C1 | O- Li+ | 225 | A 0 0 0; B 1/4 1/4 1/4 | 4.6190 |
cuprite | C3 | Cu+ O- | 224 | A 0 0 0; B 1/4 1/4 1/4 | 4.2696 |
rutile | C4 | Ti+ O- | 136 | A 0 0 0; B x x 0 | 4.5937 2.9587 | 0.3048
brookite | C21 | Ti+ O- | 61 | A x y z; B p q r; B s t u | 9.1840 5.4470 5.1450 | 0.1289 0.0972 0.8628 0.0095 0.1491 0.1835 0.2314 0.1110 0.5366
anatase | C5 | Ti+ O- | 141 | A 0 3/4 1/8; B 0 1/4 z | 3.7845 9.5143 | 0.0831
cadmium_iodide | C6 | Cd+ I- | 164 | A 0 0 0; B 1/3 2/3 z | 4.2445 6.8642 | 0.2492
molybdenite | C7 | Mo+ S- | 194 | A 1/3 2/3 1/4; B 1/3 2/3 z | 3.1604 12.2950 | 0.6210
quartz | - | Si+ O- | 154 | A x 0 2/3; B p q r | 4.9134 5.4052 | 0.4697 0.4135 0.2669 0.7858
cristobalite | - | Si+ O- | 92 | A x x 0; B p q r | 4.9717 6.9223 | 0.3003 0.2392 0.1044 0.1787
molybdenum_disilicide | C11_b | Mo0 Si0 | 139 | A 0 0 0; B 0 0 z | 3.2050 7.8460 | 0.3353
peroxide | C11_a | Ba+ O= | 139 | A 0 0 0; B 0 0 z | 3.8130 6.8450 | 0.3920
lithium_peroxide | - | Li+ O= | 194 | A 0 0 0; A 2/3 1/3 1/4; B 1/3 2/3 z | 3.1420 7.6500 | 0.1490
laves_c14 | C14 | Mg0 Zn0 | 194 | A 1/3 2/3 z; B 0 0 0; B x -x 1/4 | 5.2210 8.5670 | 0.0625 0.8300
laves_c15 | C15 | Mg0 Cu0 | 227 | A 1/8 1/8 1/8; B 1/2 1/2 1/2 | 7.0400 |
aluminium_copper | C16 | Cu0 Al0 | 140 | A 0 0 1/4; B x y 0 | 6.0630 4.8720 | 0.1581 0.6581
pyrite | C2 | Fe+ S= | 205 | A 0 0 0; B x x x | 5.4179 | 0.3847
marcasite | C18 | Fe+ S= | 58 | A 0 0 0; B x y 0 | 4.4446 5.4246 3.3864 | 0.2000 0.3782
cadmium_chloride | C19 | Cd+ Cl- | 166 | A 0 0 0; B 0 0 z | 3.8460 17.4790 | 0.2522
cotunnite | C23 | Pb+ Cl- ~ | 62 | A x 1/4 z; B p 1/4 q; B r 1/4 s | 7.6204 4.5342 9.0452 | 0.2377 0.9041 0.1250 0.5783 0.0202 0.1630
aluminium_diboride | C32 | Al0 B0 | 191 | A 0 0 0; B 1/3 2/3 1/2 | 3.0090 3.2620 |
calcium_chloride | C35 | Ca+ Cl- | 58 | A 0 0 0; B x y 0 | 6.2500 6.4400 4.1850 | 0.2750 0.3250
copper_antimonide | C38 | Cu0 Sb0 | 129 | A 3/4 1/4 0; A 1/4 1/4 u; B 1/4 1/4 v | 4.0006 6.1043 | 0.2700 0.7000
chromium_disilicide | C40 | Cr0 Si0 | 180 | A 1/2 0 1/2; B x y 1/2 | 4.4276 6.3681 | 0.1656 0.3312
baddeleyite | C43 | Zr+ O- | 14 | A x y z; B p q r; B s t u | 5.1505 5.2116 5.3173 99.23 | 0.2754 0.0395 0.2083 0.0700 0.3317 0.3447 0.4496 0.7569 0.4792
zirconium_disilicide | C49 | Zr0 Si0 | 63 | A 0 y 1/4; B 0 p 1/4; B 0 q 1/4 | 3.7300 14.7200 3.6700 | 0.1040 0.7500 0.4390
titanium_disilicide | C54 | Ti0 Si0 | 70 | A 1/8 1/8 1/8; B x 1/8 1/8 | 8.2671 4.8000 8.5505 | 0.4615
nickel_indium | B8_2 | Ni0 In0 | 194 | A 0 0 0; A 1/3 2/3 3/4; B 1/3 2/3 1/4 | 4.1860 5.1290 |
columbite | - | Pb+ O- | 60 | A 0 y 1/4; B p q r | 4.9710 5.9560 5.4380 | 0.1779 0.2685 0.4010 0.4248
rhenium_trioxide | D0_9 | Re+ O- | 221 | A 0 0 0; B 1/2 0 0 | 3.7480 |
aluminium_fluoride | - | Al+ F- | 167 | A 0 0 0; B x 0 1/4 | 4.9305 12.4462 | 0.4275
bismuth_iodide | D0_5 | Bi+ I- | 148 | A 0 0 z; B p q r | 7.4963 20.6822 | 0.3333 0.3330 0.0000 0.0880
aluminium_chloride | D0_15 | Al+ Cl- | 12 | A 0 y 0; B p 0 q; B r s t | 5.9140 10.2340 6.1480 108.25 | 0.1662 0.2147 0.2263 0.7518 0.1787 0.2248
lanthanum_fluoride | - | La+ F- | 165 | A x 0 1/4; B p q r; B 1/3 2/3 s; B 0 0 1/4 | 7.1850 7.3510 | 0.6598 0.3659 0.0536 0.0813 0.1859
yttrium_fluoride | - | Y+ F- | 62 | A x 1/4 z; B p 1/4 q; B r s t | 6.3530 6.8500 4.3930 | 0.3673 0.0591 0.5227 0.5910 0.1652 0.0643 0.3755
uranium_chloride | - | La+ Cl- | 176 | A 1/3 2/3 1/4; B p q 1/4 | 7.4779 4.3745 | 0.3874 0.3015
molybdenum_trioxide | D0_8 | Mo+ O- | 62 | A x 1/4 z; B p 1/4 q; B r 1/4 s; B t 1/4 u | 13.8550 3.6964 3.9628 | 0.1016 0.0867 0.4351 0.4994 0.0866 0.5212 0.2214 0.0373
lithium_nitride | - | Li+ N- | 191 | A 0 0 1/2; A 1/3 2/3 0; B 0 0 0 | 3.6510 3.8750 |
sodium_arsenide | D0_18 | Na+ As- ~ | 194 | A 0 0 1/4; A 1/3 2/3 z; B 1/3 2/3 1/4 | 5.0880 9.0000 | 0.5830
bismuth_fluoride | D0_3 | Fe0 Al0 | 225 | A 1/4 1/4 1/4; A 1/2 1/2 1/2; B 0 0 0 | 5.7920 |
lithium_bismuth | D0_3 | Li+ Bi- | 225 | A 1/4 1/4 1/4; A 1/2 1/2 1/2; B 0 0 0 | 6.7080 |
skutterudite | D0_2 | Co+ As: | 204 | A 1/4 1/4 1/4; B 0 y z | 8.2043 | 0.3442 0.1514
copper3_gold | L1_2 | Cu0 Au0 | 221 | A 0 1/2 1/2; B 0 0 0 | 3.7490 |
nickel3_tin | D0_19 | Ni0 Sn0 | 194 | A x -x 1/4; B 1/3 2/3 1/4 | 5.2950 4.2470 | 0.8392
titanium_aluminium3 | D0_22 | Al0 Ti0 | 139 | A 0 0 1/2; A 0 1/2 1/4; B 0 0 0 | 3.8537 8.5839 |
a15 | A15 | Nb0 Sn0 | 223 | A 1/4 0 1/2; B 0 0 0 | 5.2893 |
cementite | D0_11 | Fe0 C0 | 62 | A x y z; A u 1/4 v; B p 1/4 q | 5.0897 6.7434 4.5235 | 0.1816 0.0666 0.3374 0.0367 0.8402 0.8770 0.4440
nickel4_molybdenum | D1_a | Ni0 Mo0 | 87 | A x y 0; B 0 0 0 | 5.7200 3.5640 | 0.2000 0.4000
barium_aluminium4 | D1_3 | Ba0 Al0 | 139 | A 0 0 0; B 0 1/2 1/4; B 0 0 z | 4.5660 11.2780 | 0.3800
calcium_copper5 | D2_d | Ca0 Cu0 | 191 | A 0 0 0; B 1/3 2/3 0; B 1/2 0 1/2 | 5.0820 4.0780 |
calcium_hexaboride | D2_1 | Ca0 B0 | 221 | A 0 0 0; B 1/2 1/2 x | 4.1522 | 0.2019
thorium_manganese12 | D2_b | Th0 Mn0 | 139 | A 0 0 0; B x 0 0; B y 1/2 0; B 1/4 1/4 1/4 | 8.4700 4.9500 | 0.3610 0.2780
nickel2_aluminium3 | D5_13 | Ni0 Al0 | 164 | A 1/3 2/3 u; B 0 0 0; B 1/3 2/3 v | 4.0282 4.8906 | 0.1490 0.6480
corundum | D5_1 | Al+ O- | 167 | A 0 0 z; B x 0 1/4 | 4.7589 12.9910 | 0.3523 0.3064
lanthanum_oxide | D5_2 | La+ O- | 164 | A 1/3 2/3 z; B 1/3 2/3 u; B 0 0 0 | 3.9373 6.1299 | 0.2454 0.6471
bixbyite | D5_3 | Y+ O- | 206 | A 1/4 1/4 1/4; A u 0 1/4; B x y z | 10.6040 | 0.9673 0.3907 0.1520 0.3804
antibixbyite | D5_3 | Mg+ N- | 206 | A x y z; B 1/4 1/4 1/4; B u 0 1/4 | 9.9528 | 0.3890 0.1530 0.3820 0.9690
stibnite | D5_8 | Sb+ S- | 62 | A a 1/4 b; A c 1/4 d; B p 1/4 q; B r 1/4 s; B t 1/4 u | 11.2820 3.8296 11.2250 | 0.0294 0.8260 0.3506 0.0360 0.7078 0.8082 0.5496 0.1230 0.3754 0.4389
tetradymite | C33 | Bi+ Te- | 166 | A 0 0 u; B 0 0 0; B 0 0 v | 4.3860 30.4970 | 0.4000 0.7880
gallium_oxide | - | Ga+ O- | 12 | A x 0 z; A u 1/2 v; B a 0 b; B c 0 d; B e 1/2 f | 12.2200 3.0390 5.8000 103.77 | 0.0905 0.7946 0.1587 0.3140 0.1645 0.1098 0.1733 0.5632 0.9959 0.2566
vanadium_pentoxide | D8_7 | V+ O- | 59 | A x 1/4 z; B p 1/4 q; B r 1/4 s; B 1/4 1/4 t | 11.5120 3.5640 4.3680 | 0.10118 0.8917 0.1043 0.5310 0.9311 0.0030 0.0010
silicon_nitride | - | Si+ N- | 176 | A x y 1/4; B 1/3 2/3 1/4; B p q 1/4 | 7.6080 2.9110 | 0.1744 0.7690 0.3299 0.0298
aluminium_carbide | D7_1 | Al+ C- | 166 | A 0 0 x; A 0 0 y; B 0 0 0; B 0 0 z | 3.3370 24.9800 | 0.2942 0.1297 0.2168
perovskite | E2_1 | Sr+ Ti+ O- | 221 | A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0 | 3.9051 |
perovskite_tetragonal | - | Pb+ Ti+ O- | 99 | A 0 0 0; B 1/2 1/2 u; C 1/2 1/2 v; C 1/2 0 w | 3.9040 4.1520 | 0.5377 0.1118 0.6174
perovskite_orthorhombic | - | Ca+ Ti+ O- | 62 | A x 1/4 z; B 1/2 0 0; C u 1/4 v; C p q r | 5.4423 7.6401 5.3796 | 0.0356 0.9932 0.4838 0.0714 0.2888 0.0371 0.7108
perovskite_rhombohedral | - | La+ Al+ O- | 167 | A 0 0 1/4; B 0 0 0; C x 0 1/4 | 5.3647 13.1114 | 0.5253
perovskite_hexagonal | - | Ba+ Ni+ O- | 194 | A 1/3 2/3 3/4; B 0 0 0; C x -x 1/4 | 5.6290 4.8110 | 0.1462
post_perovskite | - | Ca+ Ir+ O- | 63 | A 0 y 1/4; B 0 0 0; C 0 u 1/4; C 0 v w | 3.1447 9.8637 7.2987 | 0.7498 0.0669 0.3647 0.4447
antiperovskite | E2_1 | Cl- O- Li+ | 221 | A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0 | 3.9100 |
carbide_antiperovskite | E2_1 | Al0 C0 Mn0 | 221 | A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0 | 3.8690 |
ilmenite | E2_2 | Fe+ Ti+ O- | 148 | A 0 0 u; B 0 0 v; C x y z | 5.0884 14.0855 | 0.3554 0.1465 0.3174 0.0233 0.2451
lithium_niobate | - | Li+ Nb+ O- | 161 | A 0 0 u; B 0 0 0; C x y z | 5.1483 13.8631 | 0.2787 0.0492 0.3446 0.0647
calcite | G0_1 | Ca+ C+ O- | 167 | A 0 0 0; B 0 0 1/4; C x 0 1/4 | 4.9900 17.0610 | 0.2569
dolomite | G1_1 | Ca+ Mg+ C+ O- | 148 | A 0 0 0; B 0 0 1/2; C 0 0 u; D x y z | 4.8069 16.0034 | 0.2428 0.2480 -0.0354 0.2439
aragonite | G0_2 | Ca+ C+ O- | 62 | A x 1/4 z; B u 1/4 v; C p 1/4 q; C r s t | 5.7404 4.9614 7.9671 | 0.7595 0.4151 0.9148 0.7627 0.9041 0.9222 0.9128 0.4729 0.6801
delafossite | - | Cu+ Al+ O- | 166 | A 0 0 0; B 0 0 1/2; C 0 0 z | 2.8580 16.9580 | 0.1099
layered_rocksalt | F5_1 | Na+ Fe+ O- | 166 | A 0 0 1/2; B 0 0 0; C 0 0 z | 3.0240 16.0900 | 0.2660
ordered_rocksalt | - | Li+ Fe+ O- | 141 | A 0 3/4 1/8; B 0 1/4 3/8; C 0 1/4 z | 4.0570 8.7590 | 0.1200
intercalated_layers | - | Li+ Ti+ S- | 164 | A 0 0 1/2; B 0 0 0; C 1/3 2/3 z | 3.4550 6.1950 | 0.2400
chalcopyrite | E1_1 | Cu+ Fe+ S- | 122 | A 0 0 0; B 0 0 1/2; C x 1/4 1/8 | 5.2890 10.4230 | 0.2574
lithium_aluminate | - | Li+ Al+ O- | 92 | A x x 0; B y y 0; C p q r | 5.1687 6.2679 | 0.8126 0.1759 0.3369 0.2906 0.7723
lithium_gallate | - | Li+ Ga+ O- | 33 | A x y z; B p q 0; C a b c; C d e f | 5.4020 6.3720 5.0070 | 0.4207 0.1267 0.4936 0.0821 0.1263 0.4066 0.1388 0.8927 0.0697 0.1121 0.3708
infinite_layer | - | Ca+ Cu+ O- | 123 | A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0 | 3.8611 3.1995 |
matlockite | E0_1 | Pb+ F- Cl- | 129 | A 1/4 1/4 u; B 3/4 1/4 0; C 1/4 1/4 v | 4.1100 7.2460 | 0.2058 0.6497
lithium_iron_arsenide | - | Li+ Fe+ As- ~ | 129 | A 1/4 1/4 u; B 3/4 1/4 1/2; C 1/4 1/4 v | 3.7830 6.3590 | 0.8459 0.2635
half_heusler | C1_b | Ti0 Ni0 Sn0 | 216 | A 0 0 0; B 1/4 1/4 1/4; C 1/2 1/2 1/2 | 5.9300 |
filled_zincblende | C1_b | Li+ Mg+ P- | 216 | A 1/2 1/2 1/2; B 0 0 0; C 1/4 1/4 1/4 | 6.0050 |
heusler | L2_1 | Cu0 Mn0 Al0 | 225 | A 1/4 1/4 1/4; B 1/2 1/2 1/2; C 0 0 0 | 5.9530 |
inverse_heusler | X_A | Mn0 Co0 Ga0 | 216 | A 0 0 0; A 1/4 1/4 1/4; B 1/2 1/2 1/2; C 3/4 3/4 3/4 | 5.8700 |
quaternary_heusler | - | Li0 Mg0 Pd0 Sn0 | 216 | A 0 0 0; B 1/2 1/2 1/2; C 1/4 1/4 1/4; D 3/4 3/4 3/4 | 6.4000 |
spinel | H1_1 | Mg+ Al+ O- AB | 227 | A 1/8 1/8 1/8; B 1/2 1/2 1/2; C x x x | 8.0832 | 0.2624
hausmannite | - | Zn+ Mn+ O- AB | 141 | A 0 3/4 1/8; B 0 0 1/2; C 0 y z | 5.7204 9.2450 | 0.5256 0.7589
olivine | S1_2 | Mg+ Mg+ Si+ O- AB | 62 | A 0 0 0; B x 1/4 z; C u 1/4 v; D p 1/4 q; D r 1/4 s; D l m n | 10.1943 5.9807 4.7535 | 0.2774 0.9915 0.0940 0.4262 0.0913 0.7657 0.4474 0.2215 0.1628 0.0331 0.2777
k2nif4 | - | K+ Ni+ F- | 139 | A 0 0 u; B 0 0 0; C 1/2 0 0; C 0 0 v | 4.0100 13.0800 | 0.3521 0.1511
thiogallate | E3 | Cd+ Al+ S- | 82 | A 0 0 0; B 0 0 1/2; B 0 1/2 1/4; C x y z | 5.5500 10.3000 | 0.2700 0.2600 0.1400
scheelite | H0_4 | Ca+ W+ O- | 88 | A 0 1/4 5/8; B 0 1/4 1/8; C x y z | 5.2430 11.3760 | 0.1504 0.0085 0.2111
zircon | S1_1 | Zr+ Si+ O- | 141 | A 0 3/4 1/8; B 0 1/4 3/8; C 0 y z | 6.6070 5.9820 | 0.0661 0.1953
wolframite | H0_6 | Mg+ W+ O- | 13 | A 1/2 y 1/4; B 0 v 1/4; C a b c; C d e f | 4.6939 5.6747 4.9279 90.71 | 0.6689 0.1809 0.2203 0.1044 0.9430 0.2574 0.3764 0.3973
baryte | H0_2 | Ba+ S+ O- | 62 | A x 1/4 z; B u 1/4 v; C a 1/4 b; C c 1/4 d; C p q r | 8.8840 5.4560 7.1570 | 0.1845 0.1584 0.5625 0.8092 0.4130 0.8938 0.6824 0.9503 0.5806 0.0298 0.6878
berlinite | - | Al+ P+ O- | 152 | A x 0 1/3; B y 0 5/6; C p q r; C s t u | 4.9430 10.9600 | 0.4664 0.4669 0.4163 0.2922 0.3976 0.4156 0.2576 0.8836
enargite | H2_5 | Cu+ As+ S- | 31 | A x y z; A 0 q r; B 0 u 0; C a b c; C 0 d e; C 0 f g | 7.4300 6.4600 6.1800 | 0.2466 0.6745 0.0134 0.8486 0.5017 0.1732 0.2598 0.6636 0.3816 0.1774 0.3546 0.8564 0.8834
sulvanite | H2_4 | Cu+ V+ S- | 215 | A 1/2 0 0; B 0 0 0; C x x x | 5.3912 | 0.2372
lithium_manganate | - | Li+ Mn+ O- | 12 | A 0 1/2 0; A 0 0 1/2; A 0 y 1/2; B 0 u 0; C a 0 b; C p q r | 4.9370 8.5320 5.0300 109.46 | 0.6606 0.1670 0.2189 0.2273 0.2540 0.3212 0.2233
pyrochlore | E8_1 | Y+ Ti+ O- | 227 | A 1/2 1/2 1/2; B 0 0 0; C x 1/8 1/8; C 3/8 3/8 3/8 | 10.0900 | 0.3285
ruddlesden_popper_2 | - | Sr+ Ti+ O- | 139 | A 0 0 1/2; A 0 0 a; B 0 0 b; C 0 0 0; C 0 0 c; C 0 1/2 d | 3.9000 20.3800 | 0.3174 0.0976 0.1938 0.0957
trirutile | - | Zn+ Sb+ O- | 136 | A 0 0 0; B 0 0 z; C x x 0; C u u v | 4.6640 9.2630 | 0.3333 0.3050 0.3000 0.3300
elpasolite | - | K+ Na+ Al+ F- | 225 | A 1/4 1/4 1/4; B 1/2 1/2 1/2; C 0 0 0; D x 0 0 | 8.1200 | 0.2210
k2ptcl6 | J1_1 | K+ Pt+ Cl- | 225 | A 1/4 1/4 1/4; B 0 0 0; C x 0 0 | 9.7530 | 0.2400
pyroxene | - | Na+ Al+ Si+ O- | 15 | A 0 v 1/4; B 0 w 1/4; C x y z; D a b c; D d e f; D p q r | 9.4230 8.5640 5.2230 107.56 | 0.3005 0.9058 0.2906 0.0933 0.2277 0.1090 0.0763 0.1275 0.3611 0.2633 0.2932 0.3538 0.0072 0.0060
garnet | S1_4 | Y+ Al+ Al+ O- BC | 230 | A 1/8 0 1/4; B 0 0 0; C 3/8 0 1/4; D x y z | 12.0062 | 0.9694 0.0512 0.1500
kesterite | - | Cu+ Zn+ Sn+ S- | 82 | A 0 0 0; A 0 1/2 1/4; B 0 1/2 3/4; C 0 0 1/2; D x y z | 5.4270 10.8710 | 0.2440 0.2434 0.1278
stannite | H2_6 | Cu+ Fe+ Sn+ S- | 121 | A 0 1/2 1/4; B 0 0 0; C 0 0 1/2; D x x z | 5.4495 10.7410 | 0.2449 0.1298
thorium_chromium_silicide | - | Ba0 Fe0 As0 | 139 | A 0 0 0; B 0 1/2 1/4; C 0 0 z | 3.9628 13.0190 | 0.3545
calcium_aluminium_silicide | - | Mg+ Mg+ Sb- AB ~ | 164 | A 0 0 0; B 1/3 2/3 u; C 1/3 2/3 v | 4.5630 7.2360 | 0.6340 0.2300
zirconium_copper_silicide_arsenide | - | La+ Fe+ As- O- | 129 | A 1/4 1/4 u; B 3/4 1/4 1/2; C 1/4 1/4 v; D 3/4 1/4 0 | 4.0340 8.7400 | 0.1415 0.6512
max_211 | - | Cr0 Al0 C0 | 194 | A 1/3 2/3 z; B 1/3 2/3 3/4; C 0 0 0 | 2.8600 12.8200 | 0.0860
"""  # noqa: E501


SIGNS = {"+": (1, 0), "-": (-1, 0), "=": (-1, 1), ":": (-1, 2), "0": (0, 0)}
"""Sign of a slot, and bonds to its own kind."""


@dataclass(frozen=True)
class Slot:
    """A place for one element.

    Args:
        element: of the known compound.
        sign: +1 cation, -1 anion, 0 without charge.
        bonded: neighbours of its own kind that an anion is bonded to.
    """

    element: str
    sign: int
    bonded: int = 0


@dataclass(frozen=True)
class Prototype:
    """A known structure, with a slot for each element.

    Args:
        name: of the prototype.
        strukturbericht: its old symbol, or "-".
        space_group: number.
        slots: in the order of the letters.
        sites: occupied positions, letters are free coordinates.
        lattice: independent parameters, Å and degrees.
        free: values of the free coordinates, fractional.
        alloys: whether it is also for what has no charges: "~" with elements of the p block in the
            anions' slots, "*" with any, "" not.
        mixed: slots that may hold the same element; empty for none.
    """

    name: str
    strukturbericht: str
    space_group: int
    slots: tuple[Slot, ...]
    sites: str
    lattice: tuple[float, ...]
    free: tuple[float, ...]
    alloys: str
    mixed: tuple[int, ...]

    @property
    def ionic(self) -> bool:
        """Whether its slots have charges."""
        return any(slot.sign for slot in self.slots)

    @property
    def elements(self) -> tuple[str, ...]:
        """Those of the known compound, slot by slot."""
        return tuple(slot.element for slot in self.slots)


@cache
def prototypes() -> dict[str, Prototype]:
    """The table by name, in its order."""
    read = [_read(line) for line in TABLE.strip().splitlines()]
    return {prototype.name: prototype for prototype in read}


def prototype(name: str) -> Prototype:
    """One of the table.

    Raises:
        ConfigError: it is not there.
    """
    found = prototypes().get(name)
    if found is None:
        raise ConfigError(f"There is no prototype {name!r}. Known are {', '.join(prototypes())}.")
    return found


def _read(line: str) -> Prototype:
    name, strukturbericht, compound, number, sites, lattice, free = (
        field.strip() for field in line.split("|")
    )
    words = compound.split()
    alloys = next((word for word in words if word in ("~", "*")), "")
    mixed = next((word for word in words if word in ("AB", "BC")), "")
    slots = tuple(Slot(word[:-1], *SIGNS[word[-1]]) for word in words if word[-1] in SIGNS)
    return Prototype(
        name=name,
        strukturbericht=strukturbericht,
        space_group=int(number),
        slots=slots,
        sites=sites,
        lattice=tuple(map(float, lattice.split())),
        free=tuple(map(float, free.split())),
        alloys=alloys,
        mixed=tuple("ABCD".index(letter) for letter in mixed),
    )


def skeleton(name: str) -> tuple[Atoms, tuple[int, ...]]:
    """The primitive cell of a prototype's known compound (Å), and the slot of each atom.

    Raises:
        ConfigError: there is no such prototype.
    """
    atoms, slots = _skeleton(name)
    return atoms.copy(), slots


@cache
def _skeleton(name: str) -> tuple[Atoms, tuple[int, ...]]:
    found = prototype(name)
    # every slot an element of its own, so that the primitive cell knows the slots apart
    atoms = build(
        found.space_group, found.sites, ("H", "He", "Li", "Be"), found.lattice, found.free
    )
    atoms = primitive_cell(atoms)
    slots = tuple(int(number) - 1 for number in atoms.numbers)
    atoms.symbols = [found.elements[slot] for slot in slots]
    return atoms, slots


def build(
    space_group: int,
    sites: str,
    elements: tuple[str, ...],
    lattice: tuple[float, ...],
    free: tuple[float, ...],
) -> Atoms:
    """The conventional cell (Å) of occupied positions such as `A 0 0 0; B x x 0`."""
    symbols, coordinates = _place(sites, elements, free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE reports its own rounding of special positions
        atoms = crystal(
            symbols,
            basis=coordinates,
            spacegroup=space_group,
            setting=2 if space_group in TWO_ORIGINS else 1,
            cellpar=_cell_parameters(space_group, lattice),
        )
    return Atoms(
        atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell, pbc=True
    )


def _place(
    sites: str, elements: tuple[str, ...], free: tuple[float, ...]
) -> tuple[list[str], list[list[float]]]:
    values: dict[str, float] = {}
    left = list(free)
    symbols, coordinates = [], []
    for site in sites.split(";"):
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
        raise ConfigError(f"{len(left)} coordinates too many for {sites!r}. Give one per letter.")
    return symbols, coordinates


def _cell_parameters(space_group: int, lattice: tuple[float, ...]) -> list[float]:
    """Six parameters from the independent ones of the crystal system."""
    if space_group >= 195:
        return [*lattice * 3, 90, 90, 90]
    if space_group >= 75:
        a, c = lattice
        return [a, a, c, 90, 90, 120 if 143 <= space_group < 195 else 90]
    if space_group >= 16:
        return [*lattice, 90, 90, 90]
    a, b, c, beta = lattice
    return [a, b, c, 90, beta, 90]
