"""Compiled inference: one graph for all sizes, kept on disk, and the numbers of the eager one.

The compiler itself runs once, in tests/cli/test_export.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import BASE, crystal, molecule, random_potential

from dpa4sim.batch import Batch
from dpa4sim.compiled import cache_folder, compiled, name_of
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.export import energy_and_gradient
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import Potential, load

SMALL = replace(BASE, channels=4, n_blocks=1, max_degree=1)
EXACT = 1e-11
"""eV, eV/Å: float64, the same operations in another order."""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A compiler that takes no time, and counts how often it is asked; loops stay uncompiled."""
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path))
    monkeypatch.setattr("dpa4sim.kernels.gather.open_loops", lambda shape: None)
    monkeypatch.setattr("dpa4sim.kernels.edge_convolution.open_loops", lambda shape: None)
    made = []

    def export(potential, path):
        made.append(potential)
        path.write_bytes(b"package")

    monkeypatch.setattr("dpa4sim.export.export", export)
    monkeypatch.setattr(
        torch._inductor,
        "aoti_load_package",
        lambda path: energy_and_gradient(made[-1].model),
    )
    return made


def test_it_is_compiled_once_and_then_found(stand_in, capsys):
    potential = random_potential(SMALL)
    compiled(potential)
    assert "compiling the network" in capsys.readouterr().err
    compiled(random_potential(SMALL))
    assert len(stand_in) == 1
    assert capsys.readouterr().err == ""
    with torch.no_grad():
        next(potential.model.parameters()).add_(1e-3)
    compiled(potential)
    assert len(stand_in) == 2, "other weights are another network"


def test_names_tell_apart_what_cannot_share_a_file():
    found = [
        name_of(random_potential(SMALL)),
        name_of(random_potential(replace(SMALL, cutoff=SMALL.cutoff + 0.5))),
        name_of(random_potential(SMALL, dtype="float32")),
    ]
    assert len(set(found)) == 3
    assert found[0] == name_of(random_potential(SMALL))


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cannot be written.*DPA4SIM_CACHE"):
        compiled(random_potential(SMALL))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DPA4SIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dpa4sim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "dpa4sim")


def test_a_compiled_potential_asks_the_compiled_network(stand_in, tmp_path, monkeypatch):
    eager = random_potential(SMALL)
    eager.save(tmp_path / "model.safetensors")
    fast = load(tmp_path / "model.safetensors", dtype="float64", compile=True)
    assert all(block.convolution.compiled_loops for block in fast.model.blocks)
    assert not any(block.convolution.compiled_loops for block in eager.model.blocks)
    calls = []
    network = fast.network
    fast.network = lambda *inputs: calls.append(1) or network(*inputs)
    for batch in batches():
        same(fast(batch), eager(batch), EXACT)
    assert len(calls) == 4
    with monkeypatch.context() as context:
        context.setattr("dpa4sim.potential.COMPILED_UP_TO", 0)
        same(fast(batches()[0]), eager(batches()[0]), EXACT)
    assert len(calls) == 4, "large batches go to the kernels written by hand"
    described = fast(batches()[0], descriptors=True)
    assert described.descriptors is not None, "descriptors come from the eager network"
    assert len(calls) == 4


def batches() -> list[Batch]:
    """One structure, several, an atom alone, a crystal of more edges."""
    alone = Batch.single([[0.0, 0.0, 0.0]], [8])
    return [
        crystal(),
        Batch.concatenate([crystal(), molecule(), alone]),
        alone,
        Batch.concatenate([crystal()] * 3),
    ]


def same(found, expected, tolerance):
    for name in ("energy", "forces", "stress", "atomic_energies"):
        got, wanted = getattr(found, name), getattr(expected, name)
        assert torch.allclose(got, wanted, rtol=0, atol=tolerance, equal_nan=True), name


def test_a_checkpoint_knows_the_setting(stand_in):
    model = random_potential(SMALL).model
    ways = [{}, {"compile": True}, {"accuracy": "fast"}]
    names = [model_fingerprint(Potential(model, dtype="float64", **way)) for way in ways]
    assert len(set(names)) == 3
    assert names[0] == names[1].removesuffix("-compiled")


def test_a_compiler_that_fails_is_said(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("No working C++ compiler found\nand a long trace")

    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path))
    monkeypatch.setattr("dpa4sim.export._compile", broken)
    with pytest.raises(ModelError, match=r"could not compile.*No working C\+\+ compiler"):
        compiled(random_potential(SMALL))
    assert not list(tmp_path.glob("*.pt2"))


def test_it_comes_with_its_own_accuracy():
    with pytest.raises(ConfigError, match="compile=True brings its own kernels and their accuracy"):
        Potential(random_potential(SMALL).model, compile=True, accuracy="fast")


def test_a_damaged_file_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path))
    potential = random_potential(SMALL)
    (tmp_path / f"{name_of(potential)}.pt2").write_bytes(b"half of a file")
    with pytest.raises(ModelError, match=r"is damaged\. Remove it"):
        compiled(potential)
