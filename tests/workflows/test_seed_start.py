"""The start of the shipped model: new elements, a wider cutoff, every weight kept."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import training

from dpa4sim.config import DPA4Config
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential, load


def test_more_elements_and_a_wider_cutoff(
    recipe: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    store = training.store(tmp_path / "train.h5", 4)
    torch.manual_seed(0)
    config = DPA4Config(
        species=("Cu",), cutoff=3.0, channels=8, max_degree=1, n_blocks=1, so2_layers=2
    )
    earlier = DPA4(config)
    Potential(earlier).save(tmp_path / "earlier.safetensors")
    words = ["earlier.safetensors", "start.safetensors", "--train", str(store), "--cutoff", "4"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seed_start.py", *words])
    recipe("seed_start").main()
    start = load(tmp_path / "start.safetensors").model
    assert "1 + " in capsys.readouterr().out
    assert start.config.cutoff == 4.0
    assert len(start.config.species) > 1
    state = start.state_dict()
    kept = earlier.state_dict()
    assert all(
        torch.equal(state[name], kept[name]) for name in kept if "species_table" not in name
        and name != "energy_shift"
    )  # fmt: skip
    assert torch.equal(state["species_table"][0], kept["species_table"][0])
