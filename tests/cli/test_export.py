"""dpa4sim export: a compiled file that runs in a process which never meets dpa4sim."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

import dpa4sim
from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.compiled import name_of
from dpa4sim.config import DPA4Config
from dpa4sim.export import arguments
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential

TOLERANCE = 1e-10
"""eV, eV/Å: float64."""

USER = """
import json, sys
import numpy as np, torch
package = torch._inductor.aoti_load_package(sys.argv[1])
card = json.loads(package.get_metadata()["dpa4sim"])
given = np.load(sys.argv[2])
energies, gradient = package(*(torch.from_numpy(given[name]) for name in card["inputs"]))
forces = torch.zeros(len(energies), 3, dtype=torch.float64)
forces.index_add_(0, torch.from_numpy(given["center"]), gradient)
forces.index_add_(0, torch.from_numpy(given["neighbor"]), gradient, alpha=-1)
np.savez(sys.argv[3], energies=energies.numpy(), forces=forces.numpy())
assert not [name for name in sys.modules if name.startswith("dpa4sim")]
print(json.dumps(card))
"""


def test_mliap_file_holds_the_model(run, model, crystals, tmp_path):
    code, out, _ = run("export", model, tmp_path / "a.mliap", "--dtype", "float64")
    assert code == 0
    assert f"pair_style mliap unified {tmp_path / 'a.mliap'} 0" in out
    unified = pickle.loads((tmp_path / "a.mliap").read_bytes())
    assert unified.element_types == ["Na", "Si", "Cl"]
    own = dpa4sim.load(model, dtype="float64").evaluate(crystals)
    assert torch.equal(unified.potential.evaluate(crystals).forces, own.forces)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["a.pt"], "should end in .pt2 or .mliap"),
        (["missing/a.pt2"], "There is no folder"),
        (["a.mliap", "--structure", "x.cif"], "Omit --structure"),
        (["a.pt2", "--structure", "x.cif"], "x.cif"),
    ],
)
def test_bad_words_are_told(run, model, tmp_path, words, hint):
    code, out, err = run("export", model, tmp_path / words[0], *words[1:])
    assert (code, out) == (1, "")
    assert hint in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_process_without_dpa4sim_gets_our_numbers(run, crystals, tmp_path, monkeypatch):
    """Compiling takes about a minute of one core, whatever the size of the network."""
    config = DPA4Config(
        species=("Na", "Si", "Cl"), cutoff=4.5, channels=4, n_blocks=1, max_degree=1, so2_layers=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPA4(config, dtype=torch.float64)
        for weight in network.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    Potential(network, dtype="float64").save(tmp_path / "small.safetensors")
    out = tmp_path / "small.pt2"
    words = ["--dtype", "float64", "--structure", crystals]
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):  # half
        code, said, err = run("export", tmp_path / "small.safetensors", out, *words)
    assert code == 0, err
    assert "float64" in said
    assert said.count(" edges") == 5

    potential = dpa4sim.load(tmp_path / "small.safetensors", dtype="float64")
    atoms = bulk("NaCl", "rocksalt", a=5.5, cubic=True) * (2, 1, 1)  # of a size not yet seen
    atoms.rattle(0.1, seed=5)
    batch = from_atoms(atoms)
    card, found = by_a_stranger(out, potential, batch, tmp_path)
    own = potential(batch)
    assert float(own.forces.abs().max()) > 0.1
    assert np.abs(found["energies"] - own.atomic_energies.numpy()).max() < TOLERANCE
    assert np.abs(found["forces"] - own.forces.numpy()).max() < TOLERANCE
    assert card["species"] == ["Na", "Si", "Cl"]
    assert card["cutoff"] == 4.5
    assert card["dtype"] == "float64"

    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path))
    out.rename(tmp_path / f"{name_of(potential)}.pt2")
    monkeypatch.setattr("dpa4sim.compiled._make", None)  # nothing is to be made again
    fast = dpa4sim.load(tmp_path / "small.safetensors", dtype="float64", compile=True)
    for copies in (1, 3, 2):
        many = Batch.concatenate([batch] * copies)
        for name in ("energy", "forces", "stress"):
            got, wanted = getattr(fast(many), name), getattr(potential(many), name)
            assert float((got - wanted).abs().max()) < TOLERANCE


def by_a_stranger(package: Path, potential: Potential, batch, folder: Path):
    """The file's own words and numbers, from a python that imports torch and nothing of ours."""
    names = ["species", "center", "neighbor", "vector"]
    given = zip(names, arguments(potential, batch), strict=True)
    np.savez(folder / "given.npz", **{name: value.numpy() for name, value in given})
    words = [package, folder / "given.npz", folder / "found.npz"]
    done = subprocess.run(
        [sys.executable, "-c", USER, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.load(folder / "found.npz")
