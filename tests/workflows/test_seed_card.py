"""The model card: errors by kind of frame, phases, volumes, and what goes into the model file."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from emt_teacher import emt

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.data.read import read_frames
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential, Prediction, load

ENERGY_ERROR = 0.01  # eV/atom
PRESSURE_ERROR = 0.002  # eV/Å^3


class Shifted:
    """EMT with an error of its own: so much more energy per atom, so much more pressure."""

    device = torch.device("cpu")

    def __call__(self, batch: Batch) -> Prediction:
        parts = emt([
            Atoms(s.atomic_numbers, s.positions.numpy(), cell=s.cell[0].numpy(), pbc=True)
            for s in batch.split()
        ])  # fmt: skip
        energy = [a.get_potential_energy() + ENERGY_ERROR * len(a) for a in parts]
        stress = [a.get_stress(voigt=False) + PRESSURE_ERROR * np.eye(3) for a in parts]
        return Prediction(
            energy=torch.tensor(energy),
            forces=torch.tensor(np.concatenate([a.get_forces() for a in parts])),
            stress=torch.tensor(np.stack(stress)),
            atomic_energies=torch.zeros(len(batch.positions), dtype=torch.float64),
        )


def frames() -> list[Atoms]:
    """Elements and alloys of copper and gold, relaxed and rattled."""
    made = []
    for symbols in (["Cu"] * 4, ["Au"] * 4, ["Au", "Cu", "Cu", "Cu"], ["Cu", "Au", "Au", "Au"]):
        atoms = bulk("Cu", cubic=True, a=3.9)
        atoms.symbols = symbols
        atoms.info = {"subset": "relaxed"}
        made.append(atoms)
    rattled = made[2].copy()
    rattled.rattle(0.1, seed=1)
    rattled.info = {"subset": "violent"}
    return emt([*made, rattled])


@pytest.fixture(scope="module")
def card(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("seed_card")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """All of them to train on; the frames of Cu3Au and one more, AuCu, to test on."""
    folder = tmp_path_factory.mktemp("stores")
    mixed = bulk("Cu", cubic=True, a=3.9)
    mixed.symbols = ["Au", "Au", "Cu", "Cu"]
    mixed.info = {"subset": "relaxed"}
    known = frames()
    for name, part in (("train", known), ("test", [known[2], known[4], *emt([mixed])])):
        ase.io.write(folder / f"{name}.extxyz", part, format="extxyz")
        entries = read_frames(folder / f"{name}.extxyz")
        write_store(folder / f"{name}.h5", entries, progress=False)
    return Store(folder / "train.h5"), Store(folder / "test.h5")


@pytest.fixture
def demo(tmp_path: Path) -> tuple[Path, Path]:
    """Volumes of two crystals by CHGNet, as measured, and relaxed by the model (20 Å^3/atom)."""
    entries = {
        "one": {"volume_per_atom_chgnet": 20.0, "volume_per_atom_experiment": 25.0},
        "two": {"volume_per_atom_chgnet": 16.0, "volume_per_atom_experiment": 16.0},
    }
    (tmp_path / "volumes.json").write_text(json.dumps(entries))
    cubes = [Atoms("Cu", cell=[20 ** (1 / 3)] * 3, pbc=True, info={"name": n}) for n in entries]
    ase.io.write(tmp_path / "relaxed.extxyz", cubes, format="extxyz")
    return tmp_path / "volumes.json", tmp_path / "relaxed.extxyz"


def test_errors_by_kind(card: ModuleType, stores: tuple[Store, Store]) -> None:
    found = card.held_out(Shifted(), stores[1])
    assert list(found) == ["all", "relaxed", "violent"]
    assert [entry["frames"] for entry in found.values()] == [3, 2, 1]
    for entry in found.values():
        assert entry["energy_meV_per_atom"] == pytest.approx(1e3 * ENERGY_ERROR, rel=1e-4)
        assert entry["force_meV_per_A"] == pytest.approx(0, abs=1e-3)
        # a third of the nine components
        assert entry["stress_GPa"] == pytest.approx(160.2177 * PRESSURE_ERROR / 3, rel=1e-4)


def test_phases_are_the_relaxed_compounds(card: ModuleType, stores: tuple[Store, Store]) -> None:
    found = card.phases(Shifted(), stores[0])
    formulas = [phase.composition.reduced_formula for phase in found]
    assert formulas == ["Cu", "Au", "Cu3Au", "CuAu3"]
    for phase, frame in zip(found, frames(), strict=False):
        assert phase.teacher == pytest.approx(frame.get_potential_energy() / 4, abs=1e-6)
        assert phase.model - phase.teacher == pytest.approx(ENERGY_ERROR, abs=1e-6)


def test_an_error_of_all_energies_cancels(card: ModuleType, stores: tuple[Store, Store]) -> None:
    known, held_out = (card.phases(Shifted(), store) for store in stores)
    formation = card.formation_agreement(known, held_out)
    assert formation["compounds"] == 2
    assert formation["mae_meV_per_atom"] == pytest.approx(0, abs=1e-3)
    hull = card.hull_agreement(known, held_out)
    assert (hull["compounds"], hull["same_sign"]) == (2, 1.0)


def test_volumes(card: ModuleType, demo: tuple[Path, Path]) -> None:
    found = card.volumes(*demo)
    assert found["crystals"] == 2
    assert found["median_to_chgnet_percent"] == pytest.approx(12.5, rel=1e-6)
    assert found["largest_to_chgnet_percent"] == pytest.approx(25, rel=1e-6)
    assert found["within_5_percent_of_chgnet"] == 0.5
    assert found["median_to_experiment_percent"] == pytest.approx((20 + 25) / 2, rel=1e-6)
    assert found["chgnet_to_experiment_percent"] == pytest.approx(10)


def test_every_kind_is_explained(card: ModuleType, recipe: Callable[[str], ModuleType]) -> None:
    made = (recipe("seed_frames"), recipe("seed_labels"))
    text = "".join(Path(module.__file__).read_text() for module in made)
    kinds = set(re.findall(r'marked\([^"]*"(\w+)"\)', text))
    kinds |= set(re.findall(r'"(\w+)": (?:lambda|swap_species|vacancy|slab)', text))
    assert kinds | {"vacancy", "slab"} == set(card.KINDS)


def test_the_model_is_shipped_with_its_card(
    card: ModuleType,
    stores: tuple[Store, Store],
    demo: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch,
) -> None:
    config = DPA4Config(
        species=("Cu", "Au"), channels=8, n_blocks=1, max_degree=1, so2_layers=1, n_radial=4
    )
    secret = {"data": {"train": "/somewhere/private/train.h5", "valid": ""}}
    record = {"training": {"steps": 5, "settings": secret}}
    Potential(DPA4(config), card=record).save(tmp_path / "best.safetensors")
    monkeypatch.setattr(card, "MODELS", tmp_path / "models")
    (tmp_path / "models").mkdir()
    words = [str(tmp_path / "best.safetensors"), "--name", "small"]
    words += ["--train", str(stores[0].path), "--test", str(stores[1].path)]
    words += ["--volumes", str(demo[0]), "--relaxed", str(demo[1])]
    monkeypatch.setattr(sys, "argv", ["seed_card.py", *words])
    card.main()
    shipped = load(tmp_path / "models" / "small.safetensors")
    text = json.dumps(shipped.card)
    assert "private" not in text
    assert shipped.card["training"]["settings"]["data"]["train"] == "train.h5"
    assert shipped.card["training_frames"] == 5
    assert shipped.card["held_out"]["all"]["frames"] == 3
    assert shipped.card["hull"]["compounds"] == 2
    page = (tmp_path / "models" / "small.md").read_text()
    assert page.startswith("# small\n")
    assert "| violent | 1 |" in page
    assert "2 compounds of 1 systems" in page
