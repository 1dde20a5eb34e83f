"""dpa4sim info: what the card says."""

from __future__ import annotations

import dpa4sim


def test_card(run, model):
    code, text, err = run("info", model)
    assert (code, err) == (0, "")
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    potential = dpa4sim.load(model)
    weights = sum(p.numel() for p in potential.model.parameters())
    assert rows["parameters"] == f"{weights:,}"
    assert rows["elements"] == "3: Na Si Cl"
    assert rows["cutoff"] == "5 Å"
    assert rows["option max_degree"] == "2"
    assert rows["option so2_layers"] == "2"
    assert not [name for name in rows if name.startswith("option n_radial")]
    assert rows["validation: energy meV per atom"] == "12.5"
    assert rows["licence"] == "Apache-2.0"


def test_deepmd_checkpoint_names_its_origin(run, model, tmp_path):
    run("convert", model, tmp_path / "out.pt")
    code, text, _ = run("info", tmp_path / "out.pt")
    assert code == 0
    assert "DeePMD-kit checkpoint out.pt" in text
