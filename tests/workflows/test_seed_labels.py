"""Labelling with EMT in CHGNet's place: what is asked, what is kept, how workers share."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.units import GPa
from emt_teacher import emt

CLOSE = 1e-9  # the same numbers through float64 arithmetic
TEXT = 1e-6  # extxyz has eight digits
FLOAT32 = 1e-4  # eV, eV/Å: one structure alone and in a batch
PYTHON_VARIABLE = "DPA4SIM_CHGNET_PYTHON"


@pytest.fixture(scope="module")
def labels(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("seed_labels")


@pytest.fixture
def compounds(recipe: Callable[[str], ModuleType]) -> list:
    compound = recipe("seed_data").Compound
    alloy = bulk("Cu", cubic=True, a=3.9)
    alloy.symbols = ["Au", "Cu", "Cu", "Cu"]
    return [
        compound("fcc:Ag", bulk("Ag", a=4.4), "train"),
        compound("l1_2:Cu3Au", alloy, "test"),
        compound("rocksalt:NaCl", bulk("NaCl", "rocksalt", 5.6), "train"),
    ]


def test_the_scan_finds_the_volume(labels: ModuleType, compounds: list) -> None:
    cells, scans = labels.scan_volumes(emt, compounds)
    silver, alloy, salt = cells
    assert np.cbrt(4 * silver.get_volume()) == pytest.approx(4.06, rel=0.01)  # EMT's silver
    assert np.cbrt(alloy.get_volume()) == pytest.approx(3.73, rel=0.03)
    assert salt is None
    assert scans[2] == []
    assert len(scans[0]) == len(labels.WIDE_SCAN)
    assert len(scans[1]) == len(labels.SCAN)


@pytest.mark.parametrize("a", [2.9, 5.0])
def test_a_scan_goes_on_where_the_energy_falls(labels: ModuleType, recipe, a: float) -> None:
    wrong = recipe("seed_data").Compound("fcc:Cu", bulk("Cu", a=a), "train")
    (cell,), (scan,) = labels.scan_volumes(emt, [wrong])
    assert np.cbrt(4 * cell.get_volume()) == pytest.approx(3.59, rel=0.02)
    assert len(scan) == len(labels.WIDE_SCAN) + len(labels.MORE)


def test_relaxing_together_is_relaxing_alone(labels: ModuleType) -> None:
    starts = [bulk("Cu", a=3.7), bulk("Ag", a=4.2).repeat((2, 1, 1))]
    starts[1].positions[0] += 0.1
    together = labels.relax_together(emt, starts, 12)
    for start, path in zip(starts, together, strict=True):
        ((alone),) = labels.relax_together(emt, [start], 12)
        assert len(alone) == len(path)
        np.testing.assert_allclose(path[-1].positions, alone[-1].positions, atol=CLOSE)
        assert path[-1].get_potential_energy() < path[0].get_potential_energy()
        assert np.abs(path[-1].get_forces()).max() < labels.RELAX_FMAX
    assert together[0][-1].cell.lengths()[0] * np.sqrt(2) == pytest.approx(3.59, rel=0.01)


def test_what_is_kept_of_a_path(labels: ModuleType) -> None:
    (path,) = labels.relax_together(emt, [bulk("Cu", a=3.9)], 8)
    relaxed, kept = labels.kept_path(path)
    assert relaxed.get_potential_energy() == min(f.get_potential_energy() for f in path)
    assert [frame.info["subset"] for frame in kept] == ["relaxed", "path", "path"]
    assert len({id(frame) for frame in kept}) == 3
    assert labels.kept_path([]) == (None, [])


def test_dynamics_keeps_the_energy(labels: ModuleType) -> None:
    start = bulk("Ag", cubic=True, a=4.06)
    seen: list[Atoms] = []

    def watched(frames: list[Atoms]) -> list[Atoms | None]:
        seen.extend(emt(frames))
        return emt(frames)

    rng = np.random.default_rng(0)
    ((half, end),) = labels.move_together(watched, [start], [900.0], rng)
    assert (half.info["subset"], end.info["subset"]) == ("dynamics", "dynamics")
    assert "momenta" not in end.arrays
    assert len(seen) == labels.DYNAMICS_STEPS + 1
    # total energy at the middle of the run, with central differences of the positions as velocity
    velocity = (seen[7].positions - seen[5].positions) / (2 * labels.TIME_STEP)
    kinetic = 0.5 * (start.get_masses()[:, None] * velocity**2).sum()
    first = 0.5 * (start.get_masses()[:, None] * (seen[1].positions - start.positions) ** 2).sum()
    first /= labels.TIME_STEP**2
    risen = seen[6].get_potential_energy() - seen[0].get_potential_energy()
    assert risen > 0.01
    assert kinetic + risen == pytest.approx(first, rel=0.1)


def test_units_of_chgnet(labels: ModuleType) -> None:
    atoms = bulk("Cu", cubic=True)
    s = np.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0]])
    answer = {"e": np.float32(-2.0), "f": np.ones((4, 3), np.float32), "s": s}
    frame = labels.labelled(atoms, answer)
    assert frame.get_potential_energy() == -8.0
    np.testing.assert_allclose(frame.get_stress(voigt=False), s * GPa)
    assert labels.labelled(atoms, answer | {"f": np.full((4, 3), np.nan)}) is None


def test_hopeless_frames_are_left_out(labels: ModuleType) -> None:
    good, crowded = emt([bulk("Cu"), bulk("Cu", a=1.9)])
    torn = bulk("Cu")
    forces = np.array([[labels.MAX_FORCE + 1, 0, 0]])
    torn.calc = SinglePointCalculator(torn, energy=0.0, forces=forces, stress=np.zeros(6))
    pressed = bulk("Cu")
    stress = np.array([0, 0, labels.MAX_STRESS + 0.1, 0, 0, 0])
    pressed.calc = SinglePointCalculator(pressed, energy=0.0, forces=0 * forces, stress=stress)
    assert list(labels.acceptable([good, crowded, torn, pressed])) == [good]


@pytest.fixture
def shared(labels: ModuleType, compounds: list, tmp_path: Path, monkeypatch) -> Path:
    """Labels by two workers, one compound a chunk."""
    monkeypatch.setattr(labels, "CHUNK", 1)
    for worker in (1, 0):
        labels.label_all(emt, compounds, tmp_path, seed=0, worker=worker, workers=2)
    return tmp_path


def test_workers_share_the_chunks(shared: Path) -> None:
    files = sorted(str(path.relative_to(shared)) for path in shared.rglob("*.extxyz"))
    assert files == ["0000/train.extxyz", "0001/test.extxyz"]
    assert sorted(path.name for path in shared.iterdir()) == ["0000", "0001", "0002"]


def test_a_worker_leaves_the_others_chunks(
    labels: ModuleType, compounds: list, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(labels, "CHUNK", 1)
    labels.label_all(emt, compounds, tmp_path, seed=0, worker=1, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["0001"]


def test_labels_go_through_the_store(shared: Path) -> None:
    from dpa4sim.data.read import read_frames
    from dpa4sim.data.store import Store
    from dpa4sim.data.writer import write_store

    path = shared / "0000" / "train.extxyz"
    write_store(shared / "train.h5", read_frames(path), progress=False)
    store, frames = Store(shared / "train.h5"), read(path, ":")
    assert {"volume", "relaxed", "strain", "stretched"} <= set(store.subsets)
    whole = store.batch(range(len(store)))
    for index, frame in enumerate(frames):
        assert store.subsets[store.subset_of[index]] == frame.info["subset"]
        answer = emt([frame])[0]
        assert float(whole.energy[index]) == pytest.approx(answer.get_potential_energy(), abs=TEXT)
        np.testing.assert_allclose(whole.stress[index], answer.get_stress(voigt=False), atol=TEXT)


def test_a_second_run_does_nothing(labels: ModuleType, compounds: list, shared: Path) -> None:
    def never(frames: list[Atoms]) -> list[Atoms | None]:
        raise AssertionError("asked again")

    assert labels.label_all(never, compounds, shared, seed=0) == 0


def test_a_killed_chunk_is_no_chunk(labels: ModuleType, compounds: list, tmp_path: Path) -> None:
    left = tmp_path / ".0000.part"
    left.mkdir()
    (left / "train.extxyz").write_text("half")
    labels.label_all(emt, compounds, tmp_path, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000"]
    assert len(read(tmp_path / "0000" / "train.extxyz", ":")) > 10


def test_the_same_seed_gives_the_same_labels(
    labels: ModuleType, compounds: list, shared: Path, tmp_path_factory
) -> None:
    other = tmp_path_factory.mktemp("again")
    labels.label_all(emt, compounds, other, seed=0)
    for name in ("0000/train.extxyz", "0001/test.extxyz"):
        assert (other / name).read_text() == (shared / name).read_text()


@pytest.mark.parametrize(("cell", "collapsed"), [
    ((3.0, 3.0, 3.0), False),
    ((1.2, 1.2, 1.2), True),  # 1.7 Å^3
    ((9.0, 9.0, 0.8), True),
])  # fmt: skip
def test_a_fallen_cell_is_never_asked_about(
    labels: ModuleType, cell: tuple[float, float, float], collapsed: bool
) -> None:
    assert labels.collapsed(Atoms("Cu", cell=cell, pbc=True)) == collapsed


PEER = """
import json
import numpy as np
from ase.build import bulk
from chgnet.model import CHGNetCalculator
from seed_labels import chgnet_teacher

salt = bulk("NaCl", "rocksalt", 5.4).repeat((2, 1, 1))
salt.positions += np.random.default_rng(0).normal(scale=0.1, size=(4, 3))
far = bulk("Cu", a=20.0)
ours = [salt.copy(), far, bulk("Cu")]
label, nothing, copper = chgnet_teacher()(ours)
salt.calc = CHGNetCalculator(use_device="cpu")
found = {
    "energy": salt.get_potential_energy() - label.get_potential_energy(),
    "forces": np.abs(salt.get_forces() - label.get_forces()).max(),
    "stress": np.abs(salt.get_stress() - label.get_stress()).max(),
    "largest": np.abs(salt.get_stress()).max(),
}
assert nothing is None and len(copper) == 1
print("FOUND" + json.dumps({key: float(value) for key, value in found.items()}))
"""


@pytest.mark.peer
def test_labels_are_those_of_chgnets_own_calculator() -> None:
    root = Path(__file__).parents[2]
    python = Path(os.environ.get(PYTHON_VARIABLE, root / ".peers/chgnet/bin/python"))
    if not python.is_file():
        pytest.skip(f"set {PYTHON_VARIABLE} to the python of an environment with chgnet")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", PEER],
        cwd=root / "workflows",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.partition("FOUND")[2])
    assert found.pop("largest") > 0.01
    assert max(map(abs, found.values())) < FLOAT32
