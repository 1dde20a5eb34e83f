"""Going on from a trained model: new elements, fitted energies, frozen groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import BASE, OPTION_SETS, SPECIES, crystal, molecule, random_model, random_potential
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.data.frame import Frame
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential
from dpa4sim.train.finetune import extend_species, freeze, refit_shifts, shift_changes

ROUNDING = 1e-9
"""eV, of least squares in float64."""


def energies(model: DPA4, batch: Batch, dtype: str = "float64") -> Tensor:
    return Potential(model, dtype=dtype)(batch).atomic_energies


def germanium() -> Batch:
    """The molecule with germanium for silicon."""
    batch = molecule()
    numbers = batch.atomic_numbers.clone()
    numbers[numbers == 14] = 32
    return Batch.single(batch.positions, numbers)


@pytest.mark.parametrize("name", ["neo", "zbl", "scatter"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_old_predictions_keep_every_bit(name: str, dtype: str) -> None:
    potential = random_potential(OPTION_SETS[name], dtype=dtype)
    before = potential(molecule())
    extended = extend_species(potential, ["Ge", "N"])
    assert extended.config.species == (*SPECIES, "Ge", "N")
    assert all(parameter.requires_grad for parameter in extended.parameters())
    after = Potential(extended, dtype=dtype)(molecule())
    assert torch.equal(after.energy, before.energy)
    assert torch.equal(after.forces, before.forces)


def test_a_new_element_starts_as_its_kin() -> None:
    model = random_model(BASE)
    before = energies(model, molecule())
    assert torch.equal(energies(extend_species(model, ["Ge"]), germanium()), before)
    other = extend_species(model, ["N", "Ge"], from_like={"Ge": "O"})
    assert torch.equal(other.energy_shift[[3, 4]], model.energy_shift[[1, 2]])  # N like C
    selenium = extend_species(model, ["Se"])  # like O of its group, not Si, which is nearer
    assert torch.equal(selenium.species_table[3], model.species_table[2])
    assert not torch.equal(energies(other, germanium()), before)


def test_padding_row_stays_last() -> None:
    model = random_model(BASE)
    extended = extend_species(model, ["Ge"])
    assert torch.equal(extended.species_table[-1], model.species_table[-1])
    assert torch.equal(extended.species_table[-2], model.species_table[0])


@pytest.mark.parametrize(
    ("new", "like", "message"),
    [
        (["Si"], None, "knows Si already"),
        (["Ge"], {"Ge": "Fe"}, "from_like"),
        (["Ge"], {"N": "C"}, "from_like"),
        (["Xx"], None, "chemical symbol"),
    ],
)
def test_what_cannot_be_added_is_named(
    new: list[str], like: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extend_species(random_model(BASE), new, like)


def test_shift_changes_are_exact_where_the_frames_tell_and_least_where_not() -> None:
    counts = np.array([[1, 2, 0, 0], [2, 1, 0, 0], [4, 4, 1, 0], [1, 0, 3, 0]], float)
    true = np.array([0.3, -2.0, 5.0, 0.0])
    assert np.abs(shift_changes(counts, counts @ true) - true).max() < ROUNDING
    water = np.array([[2.0, 1.0], [4.0, 2.0], [20.0, 10.0]])
    found = shift_changes(water, water @ np.array([1.0, 1.0]))
    assert found == pytest.approx([1.2, 0.6])


def test_large_frames_weigh_like_small_ones_per_atom() -> None:
    counts = np.array([[1.0], [100.0]])
    assert shift_changes(counts, np.array([0.0, 100.0])) == pytest.approx([0.5])


def labelled_store(path: Path, model: DPA4, shift: Tensor) -> Store:
    """Energies of a model plus `shift` per element; the last frame has none."""
    potential = Potential(model, dtype="float64")
    frames = []
    for number, batch in enumerate((molecule(), crystal(), crystal(), molecule())):
        noise = 0.02 * torch.randn(
            batch.positions.shape, generator=torch.Generator().manual_seed(number)
        )
        batch = Batch.single(
            batch.positions + noise, batch.atomic_numbers, batch.cell[0], batch.pbc[0]
        )
        rows = torch.tensor([(14, 6, 8).index(z) for z in batch.atomic_numbers.tolist()])
        energy = float(potential(batch).energy[0] + shift[rows].sum())
        given = None if number == 3 else energy
        frames.append(Frame(f"test#{number}", batch, given, np.zeros((len(rows), 3)), None))
    write_store(path, frames, cutoff=4.5, progress=False)
    return Store(path)


def test_refit_finds_what_was_added_and_keeps_the_rest(tmp_path: Path) -> None:
    shift = torch.tensor([0.7, 0.7, 0.7], dtype=torch.float64)
    store = labelled_store(tmp_path / "labels.h5", random_model(BASE), shift)
    model = random_model(BASE)
    before = model.energy_shift.clone()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    assert refit_shifts(model, store) is model
    assert (model.energy_shift - before - shift).abs().max() < ROUNDING
    for name, value in model.named_parameters():
        assert value.requires_grad
        assert torch.equal(value, weights[name])
    again = refit_shifts(random_model(BASE), store, np.array([0, 1]), max_frames=1)
    assert (again.energy_shift - before).abs().max() > 0.1


def test_refit_without_energies_is_refused(tmp_path: Path) -> None:
    store = labelled_store(tmp_path / "labels.h5", random_model(BASE), torch.zeros(3).double())
    with pytest.raises(DataError, match="no frame with an energy"):
        refit_shifts(random_model(BASE), store, np.array([3]))


@pytest.mark.parametrize(
    ("groups", "frozen", "free"),
    [
        (["embedding"], ["species_table", "radial.out", "basis.parameter"], ["blocks.0", "head"]),
        (["blocks.0"], ["blocks.0.convolution.query"], ["blocks.1", "readout"]),
        (["all but head"], ["species_table", "readout.units.0.gate"], ["head"]),
        (["blocks", "readout"], ["blocks.1", "readout"], ["head", "radial"]),
    ],
)
def test_groups_freeze(groups: list[str], frozen: list[str], free: list[str]) -> None:
    model = random_model(replace(BASE, readout="scalar"))
    names = freeze(model, groups)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in names)
        if name.startswith(tuple(frozen)):
            assert not parameter.requires_grad, name
        if name.startswith(tuple(free)):
            assert parameter.requires_grad, name


def test_a_block_is_no_prefix_of_another() -> None:
    model = random_model(replace(BASE, n_blocks=11))
    assert not [name for name in freeze(model, ["blocks.1"]) if name.startswith("blocks.10")]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["blcks.0"], "Did you mean 'blocks.0'"),
        (["all but haed"], "Did you mean 'head'"),
        (["x"], "Groups: basis, blocks"),
        (["blocks", "all but blocks"], "nothing to train"),
    ],
)
def test_unknown_groups_are_answered(groups: list[str], message: str) -> None:
    model = random_model(BASE)
    with pytest.raises(ConfigError, match=message):
        freeze(model, groups)
    assert all(parameter.requires_grad for parameter in model.parameters())
