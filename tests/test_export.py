"""Export: what is traced, what is checked before a file appears, what the file says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import BASE, crystal, largest, molecule, random_potential

from dpa4sim import export as module
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.export import arguments, export, metadata

SMALL = replace(BASE, channels=4, n_blocks=1, max_degree=1)
TOLERANCE = 1e-12
"""eV, eV/Å: float64, the same operations in another order."""


@pytest.fixture
def compiled(monkeypatch):
    """A stand-in of the compiler: eager, and wrong by what it is told."""
    wrong = {"by": 0.0}

    def compile_nothing(potential, example, path):
        wrong["function"] = module.energy_and_gradient(potential.model)
        path.write_bytes(b"package")

    def load(path):
        assert Path(path).read_bytes() == b"package"

        def run(*case):
            energy, gradient = wrong["function"](*case)
            return energy, gradient + wrong["by"]

        return run

    monkeypatch.setattr(module, "_compile", compile_nothing)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return wrong


def test_the_file_appears_when_it_agrees(compiled, tmp_path):
    potential, systems = random_potential(SMALL), [crystal(), molecule()]
    done = export(potential, tmp_path / "a.pt2", systems)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert done.energy_error == done.gradient_error == 0.0
    assert len(set(done.sizes)) == 5, "structures of one size would not show a fixed shape"
    assert done.sizes[-2] == (1, 0), "an atom alone has no edges"
    assert done.sizes[-1][0] == 10


@pytest.mark.parametrize(("dtype", "wrong"), [("float64", 3e-10), ("float32", 1e-3)])
@pytest.mark.parametrize("kind", ["off", "nan"])
def test_nothing_is_written_when_it_does_not(compiled, tmp_path, dtype, wrong, kind):
    compiled["by"] = wrong if kind == "off" else float("nan")
    potential = random_potential(SMALL, dtype=dtype)
    with pytest.raises(ModelError, match="nothing was written"):
        export(potential, tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_bad_words_before_any_work(compiled, tmp_path):
    potential = random_potential(SMALL)
    with pytest.raises(ConfigError, match=r"\.pt2"):
        export(potential, tmp_path / "a.pt")
    gold = Batch.single([[0.0, 0.0, 0.0]], [79])
    with pytest.raises(DataError, match="Au"):
        export(potential, tmp_path / "a.pt2", [gold])
    assert "function" not in compiled


def test_metadata_are_what_a_caller_needs():
    found = metadata(random_potential(SMALL, dtype="float32"))
    assert found["species"] == ["Si", "C", "O"]
    assert found["atomic_numbers"] == [14, 6, 8]
    assert (found["cutoff"], found["dtype"], found["device"]) == (4.5, "float32", "cpu")
    assert found["inputs"] == ["species", "center", "neighbor", "vector"]
    asked = metadata(random_potential(replace(SMALL, charge_spin=True)))
    assert asked["inputs"][4:] == ["charge", "spin"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [replace(SMALL, charge_spin=True), replace(SMALL, zbl_inner=0.8, zbl_outer=1.6)],
    ids=["charge_spin", "zbl"],
)
def test_the_traced_graph_holds_for_other_sizes(config: DPA4Config):
    """The graph that the compiler gets, by the interpreter; edges in any order."""
    potential = random_potential(config)
    first, *others = (arguments(potential, batch) for batch in module._lattices(potential))
    graph = module._traced(potential.model, first)
    own = module.energy_and_gradient(potential.model)
    for case in others:
        for got, expected in zip(graph(*case), own(*case), strict=True):
            assert largest(got - expected) < TOLERANCE
    species, center, neighbor, vector, *state = others[0]
    order = torch.randperm(len(center), generator=torch.Generator().manual_seed(0))
    energy, gradient = graph(species, center[order], neighbor[order], vector[order], *state)
    expected_energy, expected_gradient = own(*others[0])
    assert largest(energy - expected_energy) < TOLERANCE
    assert largest(gradient - expected_gradient[order]) < TOLERANCE
