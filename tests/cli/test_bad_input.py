"""Bad input: one clear sentence on stderr, exit code 1, nothing on stdout, nothing written."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from ase.io import write

DISORDERED_CIF = """data_alloy
_cell_length_a 3.6
_cell_length_b 3.6
_cell_length_c 3.6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 0.5
Si1 Si 0 0 0 0.5
Cl1 Cl 0.5 0.5 0.5 1.0
"""


def unknown_element(atoms):
    atoms.numbers[0] = 79


def nan_position(atoms):
    atoms.positions[1, 0] = np.nan


def zero_cell(atoms):
    atoms.set_cell(np.zeros((3, 3)))


def same_site(atoms):
    atoms.positions[1] = atoms.positions[0]


SICK = {
    "unknown_element": (unknown_element, "the model does not know the element(s) Au"),
    "nan_position": (nan_position, "position of atom 1 is not a finite number"),
    "zero_cell": (zero_cell, "its cell has no volume"),
    "same_site": (same_site, "atoms 0 and 1 stand on one site"),
}


@pytest.fixture
def fails(run, tmp_path):
    """Run a command line that must fail, and return its sentence."""

    def call(*words: object, code: int = 1) -> str:
        before = sorted(tmp_path.rglob("*"))
        got, out, err = run(*words)
        assert (got, out) == (code, "")
        lines = [line for line in err.splitlines() if not line.startswith("relax: ")]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return call


@pytest.mark.parametrize("verb", ["relax", "eval"])
@pytest.mark.parametrize("kind", SICK)
def test_sick_structure(fails, model, salt, tmp_path, verb, kind):
    spoil, sentence = SICK[kind]
    salt.info["REF_energy"] = -1.0
    spoil(salt)
    write(tmp_path / "sick.extxyz", salt)
    words = ["-o", tmp_path / "o.extxyz"] if verb == "relax" else []
    message = fails(verb, model, tmp_path / "sick.extxyz", *words)
    assert sentence in message
    assert "sick.extxyz#0" in message


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("alloy.cif", DISORDERED_CIF, "partially occupied"),
        ("empty.extxyz", "", "the file is empty"),
        ("empty.cif", "", "the file is empty"),
        ("words.extxyz", "not a structure\n", "expected the number of atoms"),
        ("cut.extxyz", '2\nLattice="4 0 0 0 4 0 0 0 4"\nSi 0 0 0\n', "cannot be read"),
        ("table.csv", "a,b\n", "has no known structure format"),
    ],
)
@pytest.mark.parametrize("verb", ["relax", "eval"])
def test_unreadable_file(fails, model, tmp_path, verb, name, content, sentence):
    (tmp_path / name).write_text(content)
    words = ["-o", tmp_path / "o.extxyz"] if verb == "relax" else []
    message = fails(verb, model, tmp_path / name, *words)
    assert sentence in message
    assert name in message


def test_missing_input(fails, model, tmp_path):
    assert "There is no file" in fails("relax", model, "no.cif", "-o", tmp_path / "o.extxyz")
    assert "There is no file" in fails("eval", model, "no.extxyz")


def test_missing_output_folder(fails, model, crystals, tmp_path):
    out = tmp_path / "no" / "o.extxyz"
    assert "There is no folder" in fails("relax", model, crystals, "-o", out)
    assert "There is no folder" in fails("convert", model, out.with_suffix(".pt"))
    plot = out.with_suffix(".png")
    assert "There is no folder" in fails("eval", model, crystals, "--parity", plot)


def test_output_that_is_no_structure_file(fails, model, crystals, tmp_path):
    assert "should end in .extxyz" in fails("relax", model, crystals, "-o", tmp_path / "o.cif")
    (tmp_path / "folder.extxyz").mkdir()
    assert "is a folder" in fails("relax", model, crystals, "-o", tmp_path / "folder.extxyz")


@pytest.mark.parametrize(
    ("option", "value"), [("--fmax", "0"), ("--fmax", "nan"), ("--max-steps", "-1")]
)
def test_setting_that_cannot_be(fails, model, crystals, tmp_path, option, value):
    message = fails("relax", model, crystals, "-o", tmp_path / "o.extxyz", option, value)
    assert option.lstrip("-").replace("-", "_") in message


@pytest.mark.parametrize(("name", "key"), [("energy", "E_dft"), ("forces", "F_dft")])
def test_wrong_key(fails, model, salt, tmp_path, name, key):
    salt.info["REF_energy"] = -1.0
    salt.info["total"] = -2.0
    write(tmp_path / "data.extxyz", salt)
    message = fails("eval", model, tmp_path / "data.extxyz", f"--{name}-key", key)
    assert f"no '{key}'" in message
    assert "data.extxyz#0" in message
    assert ("total" in message) == (name == "energy")


def test_no_labels_at_all(fails, model, crystals):
    assert "no reference labels" in fails("eval", model, crystals)


@pytest.mark.parametrize("value", ["word", np.array([1.0, 2.0]), np.nan])
def test_label_that_is_no_energy(fails, model, salt, tmp_path, value):
    salt.info["REF_energy"] = value
    write(tmp_path / "data.extxyz", salt)
    assert "energy label" in fails("eval", model, tmp_path / "data.extxyz")


class Bomb:
    """What a hostile checkpoint holds."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(content: object) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def headless(content: bytes) -> bytes:
    """A safetensors file without its header."""
    return content[8 + struct.unpack("<Q", content[:8])[0] :]


TENSORS = {"weights": torch.zeros(3)}
NO_MODELS = {
    "truncated.safetensors": half,
    "headless.safetensors": headless,
    "words.safetensors": lambda whole: b"these are words",
    "words.pt": lambda whole: b"these are words",
    "numbers.pt": lambda whole: bytes(range(256)),
    "empty.pt": lambda whole: b"",
    "foreign.pt": lambda whole: saved(TENSORS),
    "truncated.pt": lambda whole: half(saved(TENSORS)),
    "bare.pt": lambda whole: saved(
        {"model": {"_extra_state": {"model_params": {"type_map": ["H"]}}}}
    ),
}
"""Files that are no usable model: what they hold, given a whole one."""


@pytest.mark.parametrize("verb", ["info", "relax", "convert"])
@pytest.mark.parametrize("name", NO_MODELS)
def test_model_that_is_none(fails, model, crystals, tmp_path, verb, name):
    path = tmp_path / name
    path.write_bytes(NO_MODELS[name](model.read_bytes()))
    other = {".pt": ".safetensors", ".safetensors": ".pt"}[path.suffix]
    rest = {
        "info": (),
        "relax": (crystals, "-o", tmp_path / "o.extxyz"),
        "convert": (tmp_path / f"converted{other}",),
    }
    assert name in fails(verb, path, *rest[verb])


def test_model_that_is_missing(fails, tmp_path):
    message = fails("info", "nothing.safetensors")
    assert "There is no model 'nothing.safetensors'" in message
    assert "There is no file" in fails("convert", "no.pt", tmp_path / "o.safetensors")


@pytest.mark.parametrize("writer", ["torch.save", "pickle"])
@pytest.mark.parametrize("verb", ["info", "convert"])
def test_pickle_bomb_does_not_go_off(fails, tmp_path, writer, verb):
    trap, path = tmp_path / "went_off", tmp_path / "bomb.pt"
    if writer == "torch.save":
        torch.save({"model": Bomb(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Bomb(trap)}, protocol=2))
    words = [tmp_path / "o.safetensors"] if verb == "convert" else []
    assert "bomb.pt" in fails(verb, path, *words)
    assert not trap.exists()


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went_off")))
    assert (tmp_path / "went_off").exists()


def test_convert_needs_two_kinds(fails, model, tmp_path):
    assert "should end in .pt" in fails("convert", model, tmp_path / "o.safetensors")
    assert "should end in" in fails("convert", tmp_path / "model.bin", tmp_path / "o.pt")
    assert "one network only" in fails("convert", model, tmp_path / "o.pt", "--branch", "a")
