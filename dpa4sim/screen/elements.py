"""Built-in crystals that any chemical system is compared with: its elements and known compounds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from dpa4sim.errors import ConfigError
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.decorate import decorated, elements_of, neutral_charges
from dpa4sim.screen.dedup import Known
from dpa4sim.screen.element_table import solids
from dpa4sim.screen.fit import fit_atoms, fit_ions
from dpa4sim.screen.prototypes import prototype, skeleton
from dpa4sim.screen.symmetry import primitive_cell

if TYPE_CHECKING:
    from ase import Atoms

EXPERIMENT = "built-in crystal, measured lattice"
ESTIMATE = "built-in crystal, estimated lattice"

BINARIES = """
rocksalt: LiH NaH KH RbH CsH LiF LiCl LiBr LiI NaF NaCl NaBr NaI KF KCl KBr KI RbF RbCl RbBr RbI CsF
rocksalt: AgF AgCl AgBr MgO CaO SrO BaO TiO VO MnO FeO CoO NiO CdO EuO YbO MgS CaS SrS BaS MnS PbS EuS
rocksalt: YbS LaS CeS SmS ThS US MgSe CaSe SrSe BaSe MnSe PbSe EuSe CaTe SrTe BaTe PbTe SnTe GeTe EuTe YbTe
rocksalt: ScN YN LaN CeN PrN NdN SmN GdN TbN DyN HoN ErN TmN YbN LuN TiN ZrN HfN VN NbN CrN ThN UN PuN
rocksalt: TiC ZrC HfC VC NbC TaC ThC UC PuC ScP YP LaP CeP PrP NdP SmP GdP ThP UP ScAs YAs LaAs CeAs GdAs
rocksalt: ErAs UAs ScSb YSb LaSb CeSb GdSb LaBi CeBi YBi SnSb SnAs
cesium_chloride: CsCl CsBr CsI TlCl TlBr TlI NiAl CoAl FeAl RuAl RhAl IrAl PdAl FeTi CoTi NiTi RuTi OsTi
cesium_chloride: CuZn AgZn AuZn CuBe NiBe CoBe PdBe MgAg MgAu MgHg MgTl MgSc LiAg LiHg LiTl LiPb CaAg CaTl SrTl
cesium_chloride: YCu YAg YAu YZn YCd YMg LaZn LaAg LaCd LaMg CeMg GdCu GdAg GdZn ScCu ScAg ScAu ScRu ScRh ScPd
cesium_chloride: ScIr ScPt ScNi ScCo PdCu RhFe CoGa NiGa FeGa RuGa RhGa NiIn PdIn HfRu ZrRu HfOs ZrOs ZrCo HfCo
cesium_chloride: NbRu VRu VOs VTc TaRu TaTc MnRh FeCo AuCd AgCd MnAu ZrCu HgSr HgCa
zincblende: CuF CuCl CuBr CuI ZnS ZnSe ZnTe CdTe HgS HgSe HgTe BeS BeSe BeTe BN BP BAs AlP AlAs AlSb GaP
zincblende: GaAs GaSb InP InAs InSb SiC
wurtzite: BeO ZnO ZnS CdS CdSe AgI AlN GaN InN MgTe
nickel_arsenide: NiAs NiSb NiBi NiSn CoSb CoTe CoS CoSe NiSe NiTe FeS FeSe FeSb FeTe MnAs MnSb MnBi MnTe
nickel_arsenide: CrS CrSe CrTe CrSb VS VSe VTe TiS TiSe TiTe TiAs ZrTe PtSn PtSb PtBi PtPb PdSb PdTe AuSn RhTe IrSb CuSn
tungsten_carbide: WC MoC MoP WN TaN NbS ZrTe NbP
litharge: PbO SnO
cooperite: PtS PdO PtO
tenorite: CuO AgO
tin_sulfide: SnS SnSe GeS GeSe
millerite: NiS NiSe
boron_nitride: BN
gallium_sulfide: GaS GaSe InSe
iron_silicide: FeSi CoSi MnSi CrSi RuSi OsSi RhSi ReSi FeGe AlPd AlPt GaPd GaPt HfSb HfSn
zintl: LiAl LiGa LiIn LiZn LiCd NaTl NaIn
copper_gold: CuAu TiAl FePt FePd FeNi CoPt NiPt MnNi MnPt MnPd MnIr MnAl MnGa PdZn PtZn PdCd PtCd PdHg PtHg
copper_gold: TiGa VPt CrPt MgIn BiLi BiNa PbNa AgTi ZrHg TiHg TiRh
copper_titanium: TiCu TiCd ZrAg TiAu
gold_cadmium: AuCd AuTi PdTi PtTi MgCd IrW RhMo PtMo IrMo PtNb PtV
iron_boride: FeB MnB CoB TiB HfB LaNi CeNi PrNi GdNi YNi ZrSi HfSi YGe ZrGe
chromium_boride: CrB NiB VB NbB TaB MoB WB CaSi SrSi BaSi CaGe SrGe BaGe CaSn SrSn BaSn BaPb YSi GdSi
chromium_boride: ZrNi HfNi LaNi CeNi ThAl YAl ZrPt HfPt YGe LaGe LaRh ZrAl HfAl YGa LaGa
manganese_phosphide: MnP FeP CoP CrP WP VAs CrAs FeAs CoAs IrGe NiGe RhGe PdGe PtGe PdSi PtSi IrSi AuGa PdSn RhSb
fluorite: CaF2 SrF2 BaF2 CdF2 HgF2 PbF2 EuF2 SmF2 YbF2 SrCl2 CeO2 PrO2 TbO2 ThO2 PaO2 UO2 NpO2 PuO2 AmO2
fluorite: ScH2 YH2 LaH2 CeH2 PrH2 NdH2 GdH2 ErH2 TiH2 ZrH2 HfH2 VH2 NbH2 CoSi2 NiSi2 AuAl2 AuGa2 AuIn2 PtAl2 PtGa2 PtIn2
antifluorite: OLi2 ONa2 OK2 ORb2 SLi2 SNa2 SK2 SRb2 SeLi2 SeNa2 SeK2 TeLi2 TeNa2 TeK2 CBe2 SiMg2 GeMg2 SnMg2 PbMg2
cuprite: Cu2O Ag2O
rutile: TiO2 VO2 CrO2 MnO2 NbO2 MoO2 TcO2 RuO2 RhO2 TaO2 WO2 ReO2 OsO2 IrO2 PtO2 SiO2 GeO2 SnO2 PbO2 TeO2
rutile: MgF2 VF2 CrF2 MnF2 FeF2 CoF2 NiF2 CuF2 ZnF2 PdF2 MgH2
anatase: TiO2
cadmium_iodide: MgBr2 MgI2 CaI2 TiCl2 TiBr2 TiI2 VCl2 VBr2 VI2 MnBr2 MnI2 FeBr2 FeI2 CoBr2 CoI2 CdI2 PbI2 GeI2 ThI2
cadmium_iodide: YbI2 TmI2 TiS2 TiSe2 TiTe2 ZrS2 ZrSe2 ZrTe2 HfS2 HfSe2 HfTe2 VS2 VSe2 VTe2 TaS2 TaSe2 PtS2 PtSe2 PtTe2 PdTe2
cadmium_iodide: NiTe2 CoTe2 RhTe2 IrTe2 SnS2 SnSe2 SiTe2
molybdenite: MoS2 MoSe2 MoTe2 WS2 WSe2 WTe2 NbS2 NbSe2 NbTe2 TaS2 TaSe2 ReSe2
quartz: SiO2 GeO2 BeF2
cristobalite: SiO2 ZnCl2 ZnBr2 ZnI2
molybdenum_disilicide: MoSi2 WSi2 ReSi2 CuTi2 CuZr2 PdTi2 PdZr2 AgZr2 AgTi2 AuTi2 AlCr2 HgMg2
peroxide: MgO2 CaO2 SrO2 BaO2 NaO2 KO2 RbO2 CsO2 CaC2 SrC2 BaC2 LaC2 CeC2 NdC2 YC2 ThC2 UC2
lithium_peroxide: LiO NaO
laves_c14: MgZn2 CaLi2 CaMg2 SrMg2 BaMg2 YRu2 ScMn2 ScFe2 ScRe2 ZrMn2 ZrRe2 ZrRu2 ZrOs2 HfMn2 HfFe2 HfRe2 TiMn2 TiFe2
laves_c14: TiCr2 NbMn2 NbFe2 TaFe2 TaMn2 MoFe2 WFe2 TiZn2 ZrAl2 HfAl2 NaK2 KNa2
laves_c15: MgCu2 CaAl2 YAl2 LaAl2 CeAl2 PrAl2 NdAl2 SmAl2 GdAl2 TbAl2 DyAl2 ErAl2 ScAl2 UAl2 ThAl2 YFe2 YCo2 YNi2 YMn2
laves_c15: YRh2 YPt2 YIr2 LaRh2 LaPt2 LaNi2 GdFe2 GdCo2 GdNi2 TbFe2 DyFe2 ErFe2 SmFe2 SmCo2 ZrCr2 ZrV2 ZrCo2 ZrFe2
laves_c15: ZrMo2 ZrW2 HfCo2 HfMo2 HfV2 HfW2 TiCo2 NbCo2 NbCr2 TaCo2 TaCr2 TaV2 ScCo2 ScNi2 CaPd2 CaPt2 CaRh2 CaNi2
laves_c15: KBi2 NaAg2 NaAu2 PbAu2 BiAu2 LiPt2 UFe2 UCo2 UMn2 SrPt2 SrRh2 BaPt2 BaRh2 ZrZn2 CsBi2 RbBi2
aluminium_copper: CuAl2 FeSn2 CoSn2 MnSn2 RhSn2 FeGe2 CrGe2 AuPb2 AuNa2 PdPb2 RhPb2 BFe2 BCo2 BNi2 BMn2 BMo2 BW2 BTa2
aluminium_copper: BCr2 GeTa2 SiTa2 SiZr2 SiHf2 NiZr2 CoZr2 FeZr2 AlTh2 CuTh2 AgTh2 AgIn2 GeHf2 AlHf2
pyrite: FeS2 CoS2 NiS2 MnS2 CuS2 RuS2 OsS2 FeSe2 CoSe2 NiSe2 CuSe2 MnSe2 RuSe2 OsSe2 MnTe2 RuTe2 OsTe2 PtP2 PtAs2
pyrite: PtSb2 PtBi2 PdAs2 PdSb2 AuSb2 NiP2
marcasite: FeS2 FeSe2 FeTe2 CoTe2 NiTe2 FeP2 FeAs2 FeSb2 RuP2 RuAs2 RuSb2 OsP2 OsAs2 OsSb2 CrSb2 NiAs2 NiSb2 CoAs2
cadmium_chloride: MgCl2 MnCl2 FeCl2 CoCl2 NiCl2 ZnCl2 CdCl2 CdBr2 NiBr2 NiI2 ZnBr2 ZnI2 TaS2 NbS2
cotunnite: PbCl2 PbBr2 SrBr2 BaCl2 BaBr2 BaI2 EuCl2 SmCl2 CaH2 SrH2 BaH2 EuH2 YbH2 ThS2 ThSe2 US2 SnCl2 SnBr2 HgCl2
cotunnite: SiCo2 PCo2 PRu2 SiRu2 GePd2 SiCa2 GeCa2 SnCa2 PbCa2 SiSr2 SnSr2 GeSr2 PbSr2 SiBa2 SnBa2 GeBa2 PbBa2 SCs2
cotunnite: GePt2 SiRh2 GeRh2 SiIr2 PRe2
aluminium_diboride: MgB2 AlB2 ScB2 YB2 TiB2 ZrB2 HfB2 VB2 NbB2 TaB2 CrB2 MoB2 WB2 MnB2 ThB2 UB2 PuB2 DyB2 ErB2 LuB2 AuB2
aluminium_diboride: AgB2 CaGa2 SrGa2 BaGa2 LaGa2 CeGa2 NdGa2 USi2 ThSi2 LaCu2 YSi2 ErSi2
calcium_chloride: CaCl2 CaBr2 CrCl2
copper_antimonide: Cu2Sb Mn2Sb Cr2As Mn2As Fe2As Sc2Sb
chromium_disilicide: CrSi2 VSi2 NbSi2 TaSi2 TiSi2
baddeleyite: ZrO2 HfO2
zirconium_disilicide: ZrSi2 HfSi2 ZrGe2 HfGe2
titanium_disilicide: TiSi2 TiGe2 ZrSn2 RuAl2
nickel_indium: Ni2In Co2Ge Fe2Ge Mn2Sn Ni2Ge Ni2Si Cu2In Pd2Sn Mn2Ga Co2Sn
columbite: PbO2 ReO2
rhenium_trioxide: WO3 ReO3 UO3 NbF3 TaF3 MoF3 ScF3 NCu3
aluminium_fluoride: AlF3 ScF3 TiF3 VF3 CrF3 MnF3 FeF3 CoF3 GaF3 InF3 MoF3 RuF3 RhF3 PdF3 IrF3
bismuth_iodide: BiI3 SbI3 AsI3 FeCl3 FeBr3 CrBr3 CrI3 ScCl3 ScBr3 ScI3 TiCl3 TiBr3 VCl3 VBr3 YI3 GdI3
aluminium_chloride: AlCl3 YCl3 CrCl3 DyCl3 HoCl3 ErCl3 TmCl3 YbCl3 LuCl3 InCl3 TlCl3 RhCl3 IrCl3 RuCl3 MoCl3 AlBr3 InBr3 GaCl3
lanthanum_fluoride: LaF3 CeF3 PrF3 NdF3 UF3 PuF3 AcF3
yttrium_fluoride: YF3 SmF3 EuF3 GdF3 TbF3 DyF3 HoF3 ErF3 TmF3 YbF3 LuF3 BiF3 TlF3
uranium_chloride: LaCl3 CeCl3 PrCl3 NdCl3 SmCl3 EuCl3 GdCl3 UCl3 PuCl3 AcCl3 NpCl3 LaBr3 CeBr3 PrBr3 UBr3
molybdenum_trioxide: MoO3
lithium_nitride: Li3N
sodium_arsenide: Li3P Li3As Na3P Na3As Na3Sb Na3Bi K3P K3As K3Sb K3Bi Rb3As Rb3Sb Rb3Bi
bismuth_fluoride: Fe3Al Fe3Si Mn3Si Cu3Sb Mg3Ce Mg3La Mg3Pr Mg3Gd Li3Sb Li3Bi Li3Hg Cs3Sb
skutterudite: CoP3 CoAs3 CoSb3 RhP3 RhAs3 RhSb3 IrP3 IrAs3 IrSb3 NiP3
copper3_gold: Cu3Au Au3Cu Cu3Pt Cu3Pd Ni3Al Ni3Fe Ni3Ga Ni3Si Ni3Ge Ni3Mn Ni3Pt Co3Ti Co3Al Co3Ta Fe3Ga Fe3Pt Pt3Fe Pt3Co Pt3Cr Pt3Mn
copper3_gold: Pt3Sn Pt3In Pt3Al Pt3Ga Pt3Zn Pt3Ti Pt3Sc Pt3Y Pd3Fe Pd3Mn Pd3In Pd3Sn Pd3Pb Pd3Sc Pd3Y Pd3Ce Rh3Sc Rh3Ti Rh3Zr Rh3Nb Rh3V
copper3_gold: Rh3Ta Rh3Hf Ir3Ti Ir3V Ir3Zr Ir3Nb Ir3Ta Ir3Hf In3La In3Ce In3Pr In3Nd In3Gd In3Y In3U Sn3La Sn3Ce Sn3Ca Sn3U Sn3Sr Pb3La
copper3_gold: Pb3Ca Pb3Y Pb3Sr Tl3La Tl3Ca Al3Sc Al3Er Al3Tm Al3Yb Al3Lu Al3U Al3Zr Ga3U Zn3Ti Mn3Rh Mn3Ir Mn3Pt Ca3Sn Ca3Pb Ca3Tl Ti3Hg Zr3In La3In
nickel3_tin: Ni3Sn Ni3In Ti3Al Ti3Ga Ti3In Ti3Sn Co3W Co3Mo Mg3Cd Cd3Mg Fe3Sn Mn3Sn Mn3Ge Mn3Ga Hg3Ca Hg3Sr Al3La Al3Ce Al3Gd Al3Y Zr3Al
titanium_aluminium3: Al3Ti Al3V Al3Nb Al3Ta Al3Zr Al3Hf Ga3Ti Ga3V Ga3Nb Ga3Zr Ga3Hf Ni3V Pd3V Pt3V Pd3Nb Pd3Ta Au3Zr Mn3Ga
a15: Nb3Sn Nb3Al Nb3Ga Nb3Ge Nb3Sb Nb3Pt Nb3Au Nb3Os Nb3Ir V3Si V3Ga V3Ge V3Sn V3As V3Sb V3Au V3Pt V3Ir V3Rh Cr3Si Cr3Ge Cr3Ir Cr3Ru
a15: Cr3Os Cr3Rh Cr3Pt Mo3Si Mo3Ge Mo3Ir Mo3Os Mo3Al W3Si Ti3Au Ti3Pt Ti3Ir Ti3Sb Ti3Hg Zr3Sn Zr3Au Ta3Au Ta3Sn Ta3Sb
cementite: Fe3C Mn3C Cr3C Co3C Ni3C Ni3B Co3B Fe3B Pd3B Pd3P Pd3Si Pt3Si Y3Co Y3Ni La3Ni Gd3Co
nickel4_molybdenum: Ni4Mo Ni4W Au4Cr Au4V Au4Ti Au4Mn
barium_aluminium4: BaAl4 SrAl4 CaAl4 EuAl4 LaAl4 CeAl4 BaGa4 SrGa4 CaGa4 EuGa4 BaIn4 SrIn4 LaZn4
calcium_copper5: CaCu5 LaCu5 CeCu5 YCu5 GdCu5 LaNi5 CeNi5 PrNi5 NdNi5 GdNi5 YNi5 CaNi5 ThNi5 LaCo5 CeCo5 PrCo5 SmCo5 GdCo5 YCo5 ThCo5
calcium_copper5: LaPt5 CePt5 CaZn5 LaZn5 SrZn5 YZn5 CaAg5 SrAg5 BaAg5 BaAu5 SrAu5 BaPt5 SrPt5 CaPt5 CaAu5 UNi5 ThFe5
calcium_hexaboride: CaB6 SrB6 BaB6 LaB6 CeB6 PrB6 NdB6 SmB6 EuB6 GdB6 TbB6 DyB6 YB6 YbB6 ThB6 KB6
thorium_manganese12: ThMn12 YMn12 GdMn12 NbBe12 TaBe12 VBe12 CrBe12 MoBe12 WBe12 FeBe12 CoBe12 MnBe12 TiBe12 PdBe12 PtBe12
thorium_manganese12: AgBe12 AuBe12 CaZn12 YZn12
nickel2_aluminium3: Ni2Al3 Ni2Ga3 Ni2In3 Pd2Al3 Pd2In3 Pt2Al3 Pt2Ga3 Pt2In3
corundum: Al2O3 Ti2O3 V2O3 Cr2O3 Fe2O3 Co2O3 Ni2O3 Ga2O3 Rh2O3 Ir2O3
lanthanum_oxide: La2O3 Ce2O3 Pr2O3 Nd2O3 Pm2O3 Sm2O3 Ac2O3 Pu2O3 Th2N3 U2N3
bixbyite: Sc2O3 Y2O3 Mn2O3 In2O3 Tl2O3 Pr2O3 Nd2O3 Sm2O3 Eu2O3 Gd2O3 Tb2O3 Dy2O3 Ho2O3 Er2O3 Tm2O3 Yb2O3 Lu2O3 Au2O3
antibixbyite: Be3N2 Mg3N2 Ca3N2 Zn3N2 Cd3N2 Be3P2 Mg3P2 Mg3As2 Zn3P2 Cd3P2
stibnite: Sb2S3 Sb2Se3 Bi2S3 Th2S3 U2S3 La2S3 Ce2S3 Gd2S3 As2S3 Sb2O3 Bi2O3 As2O3
tetradymite: Bi2Te3 Bi2Se3 Sb2Te3 In2Se3 As2Te3
gallium_oxide: Ga2O3 Al2O3
vanadium_pentoxide: V2O5 Nb2O5 Ta2O5
silicon_nitride: Si3N4 Ge3N4
aluminium_carbide: Al4C3
calcium_aluminium_silicide: MgMg2Sb2 MgMg2Bi2
spinel: FeFe2O4 CoCo2O4
hausmannite: MnMn2O4
""".strip()  # noqa: E501
"""Prototype: compounds, in the order of its slots.

Real structures, or the one here that is nearest where the real one is not in the table (Nb2O5,
As2O3, CuF2): start geometries, which are relaxed before they are compared with anything.
"""


def elemental_crystals(symbols: Sequence[str]) -> list[Candidate]:
    """The stable solids of elements, and forms of nearly the same energy (C, Sn, Co, Mn).

    Gases are their molecular crystals.  Primitive cells, lattices measured.

    Raises:
        ConfigError: an element has none: At, Rn, Fr, and those beyond Am.
    """
    missing = [symbol for symbol in symbols if symbol not in solids()]
    if missing:
        raise ConfigError(
            f"No crystal of {', '.join(missing)} is built in. Give entries of it as references."
        )
    return [
        Candidate(f"{symbol}-{solid.name}", EXPERIMENT, solid.build())
        for symbol in symbols
        for solid in solids()[symbol]
    ]


def binary_crystals(system: str | Sequence[str]) -> list[Candidate]:
    """Known compounds of two elements of a chemical system, as start geometries.

    Measured lattices where the package has the crystal, else radii say how large it is.

    Raises:
        ConfigError: the system is not known.
    """
    return [each for each in known_crystals(system) if len(set(_atoms(each).numbers)) == 2]


def known_crystals(system: str | Sequence[str]) -> list[Candidate]:
    """Known compounds of two or more elements of a chemical system, as start geometries.

    Raises:
        ConfigError: the system is not known.
    """
    elements = set(elements_of(system))
    measured = [
        Candidate(f"{name}-{kind}", EXPERIMENT, atoms.copy())
        for name, kind, atoms in _measured()
        if set(atoms.symbols) <= elements
    ]
    known = Known()
    return [
        each
        for number, each in enumerate([*measured, *_estimated(elements)])
        if known.earlier(number, _atoms(each)) is None
    ]


@cache
def _measured() -> tuple[tuple[str, str, Atoms], ...]:
    """Formula, prototype and primitive cell of the crystals inside the package; no elements."""
    from ase.io import read

    with as_file(files("dpa4sim") / "crystals" / "experimental.extxyz") as path:
        crystals = read(path, ":")
    return tuple(
        (atoms.info["formula"], atoms.info["prototype"], _plain(atoms))
        for atoms in crystals
        if len(set(atoms.numbers)) > 1
    )


def _plain(atoms: Atoms) -> Atoms:
    return primitive_cell(atoms, symprec=1e-3)


def _estimated(elements: set[str]) -> Iterator[Candidate]:
    for line in BINARIES.splitlines():
        name, _, compounds = line.partition(":")
        for compound in compounds.split():
            slots = slots_of(name, compound)
            if set(slots) <= elements:
                yield Candidate(f"{_formula(compound)}-{name}", ESTIMATE, sized(name, slots))


def slots_of(name: str, compound: str) -> tuple[str, ...]:
    """The elements of a compound slot by slot.

    Raises:
        ConfigError: it has not the composition of the prototype.
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", compound)
    slots = skeleton(name)[1]
    counts = [slots.count(slot) for slot in range(len(parts))]
    given = [int(number or 1) for _, number in parts]
    if len(parts) != len(set(slots)) or any(
        counts[0] * n != given[0] * m for n, m in zip(given, counts, strict=True)
    ):
        raise ConfigError(f"{compound} has not the composition of the prototype {name}.")
    return tuple(element for element, _ in parts)


def sized(name: str, elements: Sequence[str]) -> Atoms:
    """A prototype with these elements (Å), as large as radii of ions or volumes of atoms say."""
    fits = [
        fit
        for charges in neutral_charges(prototype(name), elements)
        if (fit := fit_ions(name, elements, charges)) is not None
    ]
    best = min(fits, key=lambda fit: fit.strain) if fits else fit_atoms(name, elements)
    return decorated(name, elements, best.scale)


def _formula(compound: str) -> str:
    from pymatgen.core import Composition

    return str(Composition(compound).reduced_formula)


def _atoms(candidate: Candidate) -> Atoms:
    atoms = candidate.atoms
    if atoms is None:
        raise ConfigError(f"{candidate.name} has no structure.")
    return atoms
