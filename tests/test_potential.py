"""Potential: files, precision, elements, charge and spin."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from models import (
    BASE,
    FILE_SETS,
    NUMBERS,
    OPTION_SETS,
    crystal,
    largest,
    molecule,
    random_model,
    random_potential,
)
from safetensors.torch import save_file

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.model import DPA4
from dpa4sim.model_file import FORMAT, fill, read_safetensors
from dpa4sim.potential import Potential, load

FLOAT32_TOLERANCE = 2e-5
"""eV per largest energy, eV/Å per largest force: 1e3 float32 roundings; 4e-6 is what we see."""

TOLERANCE = 1e-13
"""eV, between float64 evaluations in batches of other sizes."""

CARD = {"licence": "CC-BY-4.0", "records": [1, 2.5, None], "name": "Prüfstück"}


def complaint_of(call) -> str:
    """The message of a ModelError, which must be short."""
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(". ") <= 2
    return message


@pytest.mark.parametrize("name", FILE_SETS)
def test_round_trip_is_bit_equal(name, tmp_path):
    model = random_model(FILE_SETS[name])
    Potential(model, card=CARD, dtype="float64").save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", dtype="float64")
    assert again.config == FILE_SETS[name]
    assert again.card == CARD
    before, after = model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_loaded_model_gives_the_same_numbers(tmp_path):
    potential = random_potential(OPTION_SETS["zbl"])
    potential.save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", dtype="float64")
    assert torch.equal(again(crystal()).forces, potential(crystal()).forces)


def test_header_is_json_for_anyone(tmp_path):
    """Read by hand: eight bytes of length, then JSON."""
    Potential(random_model(BASE), card=CARD).save(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["dpa4sim"])
    assert header["format"] == FORMAT
    assert header["units"] == {"length": "angstrom", "energy": "eV"}
    assert header["card"] == CARD
    assert DPA4Config.from_dict(header["config"]) == BASE


def test_the_same_model_makes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        Potential(random_model(BASE), card=CARD).save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_file_is_whole_or_not_there(tmp_path, monkeypatch):
    potential = random_potential(BASE)
    potential.save(tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()

    def stop_halfway(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("dpa4sim.model_file.save_file", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        potential.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    random_potential(BASE).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a readable safetensors file" in complaint_of(lambda: load(path))


def test_damaged_header(tmp_path):
    path = tmp_path / "a.safetensors"
    random_potential(BASE).save(path)
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40
    path.write_bytes(content)
    assert "is not a readable safetensors file" in complaint_of(lambda: load(path))


def test_text_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("this is no model")
    assert "is not a readable safetensors file" in complaint_of(lambda: load(path))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_file(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    assert "is not a dpa4sim model" in complaint_of(lambda: load(path))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"format": "dpa4sim-2"}, f"has the format 'dpa4sim-2'; this version reads '{FORMAT}'"),
        ({}, "unusable header"),
        ({"config": 7}, "unusable header"),
        ({"config": {"species": ["Xx"]}}, "not chemical symbols"),
        ({"config": {"species": ["C"], "chanels": 3}}, "Did you mean 'channels'"),
    ],
)
def test_unusable_header(tmp_path, header, reason):
    path = tmp_path / "a.safetensors"
    metadata = {"dpa4sim": json.dumps({"format": FORMAT} | header)}
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    assert reason in complaint_of(lambda: load(path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("head.out"), "lacks the tensor 'head.out'"),
        (lambda state: state.update(extra=torch.ones(1)), "has the tensor 'extra'"),
        (lambda state: state.update({"head.out": torch.ones(3, 1)}), "'head.out' has shape (3, 1)"),
    ],
)
def test_wrong_tensors(change, reason):
    state = dict(random_model(BASE).state_dict())
    change(state)
    assert reason in complaint_of(lambda: fill(DPA4(BASE), state, "a.safetensors"))


def test_no_such_model(tmp_path):
    assert "There is no model" in complaint_of(lambda: load(tmp_path / "nothing.safetensors"))
    assert "There is no model" in complaint_of(lambda: load("nothing"))
    assert "There is no model" in complaint_of(lambda: load(tmp_path))


def test_another_dtype():
    with pytest.raises(ConfigError, match="Choose 'float32' or 'float64'"):
        random_potential(BASE, dtype="bfloat16")


@pytest.mark.parametrize("name", OPTION_SETS)
def test_float32_follows_float64(name):
    batch = Batch.concatenate([molecule(), crystal()])
    exact = random_potential(OPTION_SETS[name])(batch)
    single = random_potential(OPTION_SETS[name], dtype="float32")(batch)
    for field in ("energy", "forces", "atomic_energies"):
        got, expected = getattr(single, field), getattr(exact, field)
        assert largest(got - expected) < FLOAT32_TOLERANCE * max(1, largest(expected))
        assert largest(got - expected) > 0
    difference = (single.stress - exact.stress)[1]
    assert largest(difference) < FLOAT32_TOLERANCE * max(1, largest(exact.stress[1]))


def test_shifts_survive_float32(tmp_path):
    shift = torch.tensor([-1234.567890123, 98.7654321, 1e-9], dtype=torch.float64)
    model = random_model(BASE)
    model.energy_shift.copy_(shift)
    potential = Potential(model, dtype="float32")
    assert torch.equal(potential.model.energy_shift, shift)
    potential.save(tmp_path / "a.safetensors")
    _, state, _ = read_safetensors(tmp_path / "a.safetensors")
    assert torch.equal(state["energy_shift"], shift)
    for dtype in ("float32", "float64"):
        assert torch.equal(load(tmp_path / "a.safetensors", dtype=dtype).model.energy_shift, shift)


def test_descriptors_on_request():
    potential = random_potential(BASE)
    assert potential(molecule()).descriptors is None
    found = potential(molecule(), descriptors=True).descriptors
    assert found is not None
    assert found.shape == (6, BASE.channels)
    assert found.dtype == torch.float64


def test_prediction_is_detached_and_weights_are_frozen():
    potential = random_potential(BASE)
    prediction = potential(molecule(), descriptors=True)
    assert prediction.edges is not None
    tensors = [value for part in (prediction, prediction.edges) for value in vars(part).values()]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert not any(value.requires_grad for value in tensors)
    assert not any(parameter.requires_grad for parameter in potential.model.parameters())
    with torch.no_grad():
        assert torch.equal(potential(molecule()).forces, prediction.forces)


def test_unknown_element():
    potential = random_potential(BASE)
    iron = Batch.single(torch.zeros(1, 3), torch.tensor([26]))
    with pytest.raises(DataError) as caught:
        potential.evaluate([molecule(), iron])
    assert str(caught.value) == (
        "Structure 1 cannot be evaluated: the model does not know the element(s) Fe. "
        "It knows C, O, Si."
    )
    assert potential.known_elements == set(NUMBERS)


def test_structures_that_cannot_be():
    potential = random_potential(BASE)
    twice = Batch.single(torch.zeros(2, 3), torch.tensor([6, 6]))
    lost = Batch.single(torch.full((1, 3), torch.nan), torch.tensor([6]))
    for batch in (twice, lost):
        with pytest.raises(DataError, match="Structure 0 cannot be evaluated"):
            potential.evaluate(batch)


def test_evaluate_is_the_call():
    potential = random_potential(BASE)
    batch = Batch.concatenate([molecule(), crystal()])
    assert torch.equal(potential.evaluate(batch).forces, potential(batch).forces)


def charged(charge: float | None, spin: float | None) -> Batch:
    batch = molecule()
    return Batch.single(batch.positions, batch.atomic_numbers, charge=charge, spin=spin)


def test_charge_and_spin_of_each_system():
    potential = random_potential(FILE_SETS["charge_spin"])
    states = [(0.0, 0.0), (-2.0, 1.0), (3.0, 1.0), (3.0, 4.0)]
    together = potential(Batch.concatenate([charged(*state) for state in states])).energy
    alone = torch.cat([potential(charged(*state)).energy for state in states])
    assert largest(together - alone) < 10 * TOLERANCE
    assert len(set(alone.tolist())) == len(states)


def test_charge_and_spin_by_default():
    """The config's values where the batch carries none, each by itself."""
    potential = random_potential(FILE_SETS["charge_spin"])  # (1, 2)
    expected = potential(charged(1.0, 2.0)).energy
    for state in [(None, None), (1.0, None), (None, 2.0)]:
        assert largest(potential(charged(*state)).energy - expected) < TOLERANCE


def test_charge_without_a_default_is_asked_for():
    potential = random_potential(replace(FILE_SETS["charge_spin"], default_charge_spin=()))
    with pytest.raises(DataError, match=r"carry no 'charge'. Set atoms.info\['charge'\]"):
        potential(molecule())
    with pytest.raises(DataError, match="carry no 'spin'"):
        potential(charged(1.0, None))


def test_charge_is_ignored_by_other_models():
    potential = random_potential(BASE)
    assert torch.equal(potential(charged(5.0, 3.0)).energy, potential(molecule()).energy)


@pytest.mark.parametrize(
    ("charge", "spin"), [(100.0, 0.0), (-101.0, 0.0), (0.0, 100.0), (0.0, -1.0), (0.5, 1.0)]
)
def test_charge_or_spin_out_of_the_tables_is_refused(charge, spin):
    potential = random_potential(FILE_SETS["charge_spin"])
    with pytest.raises(DataError):
        potential.evaluate(charged(charge, spin))


def test_names_at_the_top():
    assert dpa4sim.load is dpa4sim.ensemble.load
    assert dpa4sim.Potential is Potential


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"accuracy": "good"}, "'exact', 'high', 'fast'"),
        ({"kernels": "cuda"}, "'torch' or 'triton'"),
        ({"kernels": "triton"}, "float32 on a CUDA device"),
        ({"compile": True, "accuracy": "fast"}, "Choose it, or"),
    ],
)
def test_settings_that_cannot_be_are_refused(asked, match):
    with pytest.raises(ConfigError, match=match):
        Potential(random_model(BASE), **asked)


@pytest.mark.parametrize("accuracy", ["exact", "high", "fast"])
@pytest.mark.parametrize("before", ["highest", "medium"])
def test_accuracy_holds_for_the_evaluation_and_no_longer(accuracy, before, monkeypatch):
    potential = Potential(random_model(BASE), accuracy=accuracy)
    forward, seen = potential.model.forward, []

    def observed(*inputs):
        seen.append(torch.get_float32_matmul_precision())
        return forward(*inputs)

    monkeypatch.setattr(potential.model, "forward", observed)
    monkeypatch.setattr("dpa4sim.kernels.precision.has_short_products", lambda: True)
    torch.set_float32_matmul_precision(before)
    try:
        potential(crystal())
        assert seen == ["medium" if accuracy == "fast" else "highest"]
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_fast_products_stay_near_exact_ones():
    exact = Potential(random_model(BASE), dtype="float64")(crystal())
    fast = Potential(random_model(BASE), accuracy="fast")(crystal())
    scale = float(exact.forces.abs().max())
    assert float((fast.forces - exact.forces).abs().max()) < 1e-3 * scale
