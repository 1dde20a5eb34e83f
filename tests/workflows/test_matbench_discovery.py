"""Figures of the benchmark against its own package, the paper, and a small set end to end."""

from __future__ import annotations

import argparse
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor
from ruamel.yaml import YAML
from toy import LennardJones

from dpa4sim.errors import DataError

RECORDED = {
    5: (4000, {"F1": 0.8171768707482994, "DAF": 2.779611649783394, "Precision": 0.8220701454234388,
        "Recall": 0.812341504649197, "Accuracy": 0.8925, "FPR": 0.07383741569045084, "TP": 961,
        "FP": 208, "TN": 2609, "FN": 222, "MAE": 0.06538989804434715, "RMSE": 0.08172941885839316,
        "R2": 0.8327819010784481}),
    6: (500, {"F1": 0.8719512195121951, "DAF": 2.658486707566462, "Precision": 0.8666666666666667,
        "Recall": 0.8773006134969326, "Accuracy": 0.916, "FPR": 0.06528189910979229, "TP": 143,
        "FP": 22, "TN": 315, "FN": 20, "MAE": 0.06232150785730636, "RMSE": 0.0769297187314739,
        "R2": 0.8579482602211657}),
}  # fmt: skip
"""By seed: how many, and what stable_metrics of matbench-discovery 1.3.1 says about them."""

TABLE_1 = """
DPA4-Pro 0.833 0.859 0.255 0.069
DPA4-Plus 0.822 0.851 0.276 0.072
DPA4-Air 0.804 0.828 0.302 0.075
DPA4-Neo 0.781 0.815 0.367 0.079
EquiformerV3+DeNS-MP 0.830 0.863 0.275 0.070
eSEN-30M-MP 0.797 0.831 0.340 0.075
MatRIS-10M-MP 0.778 0.847 0.489 0.072
Eqnorm-MPtrj 0.756 0.786 0.408 0.084
Nequix-MP-PFT 0.755 0.748 0.307 0.087
Nequip-MP-L 0.733 0.761 0.452 0.086
Nequix-MP 0.729 0.751 0.446 0.085
Allegro-MP-L 0.720 0.751 0.504 0.082
DPA-3.1-MPtrj 0.718 0.803 0.650 0.080
SevenNet-l3i5 0.714 0.760 0.550 0.085
HIENet 0.707 0.777 0.642 0.080
GRACE-2L-MPtrj 0.681 0.691 0.526 0.090
MACE-MP-0 0.637 0.669 0.682 0.092
eqV2-S-DeNS 0.522 0.815 1.676 0.076
ORB-v2-MPtrj 0.470 0.765 1.726 0.101
CHGNet 0.343 0.613 2.000 0.095
M3GNet 0.310 0.569 2.000 0.112
"""
"""Table 1 of the DPA4 paper: model, CPS, F1, kappa_SRME, RMSD."""

ROUNDED = 1e-3
"""The columns have three decimals."""


@pytest.fixture(scope="module")
def flow(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("matbench_discovery")


@pytest.fixture(scope="module")
def metrics(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("discovery_metrics")


def generated(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(0.1, 0.2, n)
    return true, true + rng.normal(0.01, 0.08, n)


@pytest.mark.parametrize("seed", sorted(RECORDED))
def test_metrics_are_those_of_the_benchmarks_package(metrics: ModuleType, seed: int) -> None:
    n, expected = RECORDED[seed]
    found = metrics.discovery_metrics(*generated(seed, n))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_metrics_beside_the_package_where_it_is_installed(metrics: ModuleType) -> None:
    package = pytest.importorskip("matbench_discovery.metrics", reason="it is not installed")
    true, predicted = generated(7, 3000)
    expected = package.stable_metrics(pd.Series(true), pd.Series(predicted))
    found = metrics.discovery_metrics(true, predicted)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_what_has_no_prediction_counts_as_unstable(metrics: ModuleType) -> None:
    true = np.array([-0.1, -0.1, 0.1, 0.1, 0.2])
    found = metrics.discovery_metrics(true, np.array([-0.2, np.nan, np.nan, -0.1, 0.3]))
    assert [found[key] for key in ("TP", "FN", "FP", "TN", "missing_preds")] == [1, 1, 1, 2, 2]
    assert found["Accuracy"] == pytest.approx(3 / 5)
    assert found["MAE"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)


@pytest.mark.parametrize("line", TABLE_1.split("\n")[1:-1], ids=lambda line: line.split()[0])
def test_combined_scores_of_the_paper(metrics: ModuleType, line: str) -> None:
    score, f1, kappa, distance = map(float, line.split()[1:])
    assert metrics.combined_score(f1, kappa, distance) == pytest.approx(score, abs=ROUNDED)


def test_nothing_earns_less_than_nothing(metrics: ModuleType) -> None:
    assert metrics.combined_score(0.6, 3.0, 0.4) == pytest.approx(0.3)
    assert metrics.combined_score(1.0, 0.0, 0.0) == pytest.approx(1.0)


def test_distances_follow_formation_energies_and_subsets(
    metrics: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_STABLE", 2)
    names = [f"wbm-1-{i}" for i in range(6)]
    true = [-0.2, 0.1, -0.1, 0.3, -0.3, 0.2]
    unique = [True, True, True, True, False, True]
    columns = {metrics.TRUE_HULL: true, metrics.TRUE_FORMATION: [-1.0] * 6, metrics.UNIQUE: unique}
    summary = pd.DataFrame(columns, index=names)
    errors = pd.Series([0.0, -0.2, 0.3, 0.0, 0.0, 0.0], index=names)
    found = metrics.subset_metrics(summary, errors - 1.0)
    assert [found["full_test_set"][key] for key in ("TP", "FP", "FN", "TN")] == [2, 1, 1, 2]
    assert [found["unique_prototypes"][key] for key in ("TP", "FP", "FN", "TN")] == [1, 1, 1, 2]
    assert [found["most_stable_10k"][key] for key in ("TP", "FP")] == [1, 1]
    # 2 of the 5 unique ones are stable, also for those predicted most stable
    assert found["most_stable_10k"]["DAF"] == pytest.approx(0.5 / 0.4)
    assert found["full_test_set"]["MAE"] == pytest.approx(0.5 / 6)


def test_rmsd_is_a_share_of_the_distance_of_atoms(metrics: ModuleType) -> None:
    true = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    moved = true.copy()
    moved.translate_sites([1], [0.05, 0, 0])
    # 0.2 Å between the two, shared by both about their mean; (64 / 2)^(1/3) Å is the unit
    assert metrics.rmsd(moved, true) == pytest.approx(0.1 / 32 ** (1 / 3), rel=1e-3)
    assert np.isnan(metrics.rmsd(Structure(Lattice.cubic(4), ["Cs"], [[0, 0, 0]]), true))


@pytest.fixture
def benchmark(flow: ModuleType, tmp_path: Path) -> Path:
    """A small set in the formats of the benchmark, whose truth is what Lennard-Jones says."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from toy import AseModel

    folder = tmp_path / "data"
    folder.mkdir()
    kinds = (("Cu", "fcc"), ("Ag", "fcc"), ("CuAg", "cesiumchloride"), ("AgAu", "cesiumchloride"))
    rows, starts, entries = [], [], []
    model = LennardJones()
    for i, (formula, kind) in enumerate(kinds):
        atoms = bulk(formula, kind, a=3.9 if kind == "fcc" else 3.0)
        atoms.rattle(0.05, seed=i)
        start = AseAtomsAdaptor.get_structure(atoms)
        relaxed = atoms.copy()
        relaxed.calc = AseModel(model)
        FIRE(FrechetCellFilter(relaxed), logfile=None).run(fmax=0.02, steps=500)
        energy = float(relaxed.get_potential_energy())
        name = f"wbm-1-{i + 8}"
        parameters = {"run_type": "GGA", "software": "made", "hubbards": {}}
        structure = AseAtomsAdaptor.get_structure(Atoms(relaxed))
        entry = ComputedStructureEntry(structure, energy, parameters=parameters, entry_id=name)
        formation = (energy - sum(ENDS[symbol] for symbol in relaxed.symbols)) / len(relaxed)
        labels = {flow.ID: name, flow.TRUE_FORMATION: formation, flow.UNIQUE: i != 1}
        rows.append({**labels, flow.TRUE_HULL: [-0.1, 0.2, -0.05, 0.1][i]})
        starts.append({flow.ID: name, "initial_structure": start.as_dict()})
        entries.append({flow.ID: name, "computed_structure_entry": entry.as_dict()})
    pd.DataFrame(rows).to_csv(folder / flow.SUMMARY, index=False)
    write_lines(folder / flow.STARTS[0], starts)
    write_lines(folder / flow.ENTRIES, entries)
    elements = {s: ComputedEntry(s, energy).as_dict() for s, energy in ENDS.items()}
    with gzip.open(folder / flow.ELEMENTS, "wt") as stream:
        json.dump(elements, stream)
    return folder


ENDS = {"Cu": -2.5, "Ag": -2.25, "Au": -2.75}
"""eV/atom."""


def write_lines(path: Path, lines: list[dict]) -> None:
    with gzip.open(path, "wt") as stream:
        for line in lines:
            print(json.dumps(line), file=stream)


def asked(data: Path, out: Path, **others: object) -> argparse.Namespace:
    out.mkdir()
    plain = {"name": "Toy", "kappa": None, "no_corrections": False}
    return argparse.Namespace(data=data, out=out, **{**plain, **others})


def test_a_small_set_end_to_end(
    flow: ModuleType, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kappa = tmp_path / "kappa.json"
    kappa.write_text('{"kappa_srme": 0.5}')
    out = tmp_path / "out"
    flow.evaluate(LennardJones(), asked(benchmark, out, kappa=kappa))
    table = pd.read_csv(out / "Toy-wbm-IS2RE.csv.gz").set_index(flow.ID)
    truth = pd.read_csv(benchmark / flow.SUMMARY).set_index(flow.ID)
    assert list(table.index) == ["wbm-1-8", "wbm-1-9", "wbm-1-10", "wbm-1-11"]
    # the same path as ASE's, so the same energies
    expected = truth.loc[table.index, flow.TRUE_FORMATION].to_numpy()
    np.testing.assert_allclose(table[flow.PREDICTED], expected, atol=1e-5)
    assert (table["rmsd"] < 1e-3).all()
    with gzip.open(out / "Toy-wbm-geo-opt.jsonl.gz", "rt") as stream:
        kept = [json.loads(line) for line in stream]
    assert [line[flow.ID] for line in kept] == list(table.index)
    first = Structure.from_dict(kept[0][flow.STRUCTURE])
    assert first.composition.reduced_formula == "Cu"
    said = YAML(typ="safe").load((out / "Toy.yml").read_text())
    figures = said["metrics"]
    assert figures["discovery"]["full_test_set"]["F1"] == 1.0
    assert figures["discovery"]["unique_prototypes"]["TP"] == 2
    assert figures["discovery"]["unique_prototypes"]["DAF"] == pytest.approx(1.5)
    assert figures["geo_opt"]["symprec=1e-2"]["n_structures"] == 4
    assert figures["combined_performance_score"] == pytest.approx(0.5 + 0.3 + 0.1, abs=2e-3)
    assert said["hyperparams"]["max_force"] == 0.02
    assert "unique_prototypes" in capsys.readouterr().out


def test_both_kinds_of_start_files_are_the_same(
    flow: ModuleType, benchmark: Path, tmp_path: Path
) -> None:
    first = list(flow.read_starts(benchmark))
    other = tmp_path / "zipped"
    other.mkdir()
    with zipfile.ZipFile(other / flow.STARTS[1], "w") as archive:
        for name, atoms in first:
            atoms.info = {flow.ID: name}
            write(tmp_path / "one.extxyz", atoms)
            archive.write(tmp_path / "one.extxyz", f"{name}.extxyz")
    for (name, one), (same, two) in zip(first, flow.read_starts(other), strict=True):
        assert name == same
        np.testing.assert_allclose(one.positions, two.positions, atol=1e-7)
        np.testing.assert_allclose(one.cell, two.cell, atol=1e-7)


def test_corrections_are_added_unless_the_model_has_them(flow: ModuleType, tmp_path: Path) -> None:
    oxide = Structure(Lattice.cubic(4.2), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    parameters = {"run_type": "GGA", "software": "made", "hubbards": {}}
    true = ComputedStructureEntry(oxide, -12.0, parameters=parameters)
    ends = {"Mg": -1.6, "O": -4.9}
    for corrections, shift in ((True, -0.687), (False, 0.0)):
        results = [("wbm-1-1", oxide, -12.0, "converged")]
        (line,) = flow.predictions(results, {"wbm-1-1": true}, ends, corrections)
        assert line[flow.PREDICTED] == pytest.approx((-12 + shift + 1.6 + 4.9) / 2)


def test_a_relaxation_that_failed_has_no_prediction(flow: ModuleType) -> None:
    oxide = Structure(Lattice.cubic(4.2), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    entries = {"a": ComputedStructureEntry(oxide, -12.0)}
    results = [("a", oxide, float("nan"), "exploded")]
    (line,) = flow.predictions(results, entries, {}, True)
    assert np.isnan(line[flow.PREDICTED])
    assert np.isnan(line["rmsd"])


@pytest.mark.parametrize("lost", ["SUMMARY", "ENTRIES", "ELEMENTS", "STARTS"])
def test_a_missing_file_is_named(
    flow: ModuleType, benchmark: Path, tmp_path: Path, lost: str
) -> None:
    name = getattr(flow, lost)
    name = name if isinstance(name, str) else name[0]
    (benchmark / name).unlink()
    with pytest.raises(DataError, match=name):
        flow.evaluate(LennardJones(), asked(benchmark, tmp_path / "out"))
