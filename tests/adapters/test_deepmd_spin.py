"""The `spin` section of DeePMD-kit's checkpoints: written and read back, and what is refused.

That the numbers are DeePMD-kit's is shown in tests/parity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import BASE, largest, random_model

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.config import SpinConfig
from dpa4sim.errors import ModelError

SPINS = {
    "virtual": SpinConfig(magnetic=("Si", "O"), virtual_scale=(0.3, 0.25)),
    "one_scale": SpinConfig(magnetic=("C",), virtual_scale=(0.2,)),
    "native": SpinConfig(scheme="native", magnetic=("C", "O")),
}
DESCRIPTOR = "model.Default.atomic_model.descriptor."


def written(tmp_path: Path, name: str = "virtual", **changes: Any) -> tuple[Path, Any]:
    """A checkpoint of a random model, and the model."""
    model = random_model(replace(BASE, spin=SPINS[name], **changes))
    write_deepmd(model.config, model.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt", model


def edited(tmp_path: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint whose content was changed."""
    path, _ = written(tmp_path, name)
    content = torch.load(path, weights_only=True)
    edit(content["model"])
    torch.save(content, path)
    return path


def spin(model: dict[str, Any]) -> dict[str, Any]:
    return model["_extra_state"]["model_params"]["spin"]


@pytest.mark.parametrize("changes", [{}, {"environment_seed": False}], ids=["seed", "no_seed"])
@pytest.mark.parametrize("name", SPINS)
def test_written_and_read_back(name, changes, tmp_path):
    path, model = written(tmp_path, name, **changes)
    config, state = read_deepmd(path)
    assert config == model.config
    before = model.state_dict()
    assert state.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(state[key], value), key


def test_virtual_atoms_have_rows_in_every_table_and_no_energy(tmp_path):
    path, model = written(tmp_path)
    tensors = torch.load(path, weights_only=True)["model"]
    assert tensors[f"{DESCRIPTOR}type_embedding.adam_type_embedding"].shape == (7, 8)
    shift = tensors["model.Default.atomic_model.out_bias"]
    assert shift.shape == (1, 6, 1)
    assert torch.equal(shift[0, :3, 0], model.energy_shift)
    assert largest(shift[0, 3:]) == 0


@pytest.mark.parametrize(
    ("marks", "scales", "expected"),
    [
        ([0, 2], [0.3, 0.25], {"magnetic": ("Si", "O"), "virtual_scale": (0.3, 0.25)}),
        (["O", "Si"], [0.3, 0.25], {"magnetic": ("O", "Si"), "virtual_scale": (0.25, 0.3)}),
        (["C"], [0.1, 0.2, 0.3], {"magnetic": ("C",), "virtual_scale": (0.2,)}),
        ([True, True, True], 0.4, {"magnetic": ("Si", "C", "O"), "virtual_scale": (0.4,)}),
    ],
)
def test_every_spelling_of_marks_and_scales(marks, scales, expected, tmp_path):
    def edit(model: dict[str, Any]) -> None:
        spin(model).update(use_spin=marks, virtual_scale=scales)
        del spin(model)["scheme"]  # virtual atoms without a word

    config, _ = read_deepmd(edited(tmp_path, "virtual", edit))
    assert config.spin == SpinConfig(scheme="virtual", **expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "collinear"}, "spin.scheme = 'collinear'. dpa4sim reads 'deepspin' and"),
        ({"invented": 1}, "option spin.invented = 1, which dpa4sim does not know"),
        ({"use_spin": ["Fe"]}, "spin.use_spin = ['Fe'], which does not fit its elements Si, C, O"),
        ({"use_spin": [True]}, "spin.use_spin = [True], which does not fit"),
        ({"use_spin": [7]}, "spin.use_spin = [7], which does not fit"),
        ({"use_spin": [False] * 3}, "spin.use_spin marks no element"),
        ({"virtual_scale": [0.1]}, "spin.virtual_scale = [0.1]. It must be one number"),
        ({"virtual_scale": None}, "spin.virtual_scale = None. It must be one number"),
        ({"virtual_scale": [0.0, 0.1]}, "each must be finite and not zero"),
    ],
)
def test_what_is_refused(values, words, tmp_path):
    path = edited(tmp_path, "virtual", lambda model: spin(model).update(values))
    with pytest.raises(ModelError) as caught:
        read_deepmd(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_native_spins_of_version_1_1_are_brought_to_1_2(tmp_path):
    """The scale of the moments acted before the square."""
    _, model = written(tmp_path, "native")

    def edit(content: dict[str, Any]) -> None:
        content[f"{DESCRIPTOR}version_tensor"].fill_(1.1)

    config, state = read_deepmd(edited(tmp_path, "native", edit))
    assert config.descriptor_version == "1.2"
    scale = model.state_dict()["environment.moment_scale"]
    assert largest(state["environment.moment_scale"] - scale**2) < 1e-15


def test_native_model_without_a_magnetic_element_is_a_plain_one(tmp_path):
    path = edited(tmp_path, "native", lambda model: spin(model).update(use_spin=[False] * 3))
    config, state = read_deepmd(path)
    assert config == BASE
    assert not [name for name in state if "moment" in name]
