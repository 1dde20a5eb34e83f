"""dpa4sim doctor: it says yes to a sound model, and can say no."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dpa4sim
from dpa4sim.cli import doctor


def test_all_is_well(run):
    code, text, err = run("doctor")
    assert (code, err) == (0, "")
    assert torch.__version__.split("+")[0] in text
    assert text.rstrip().endswith("verdict: all is well.")
    assert text.count(" ok") == 3


class Spoilt:
    """A potential with one law broken."""

    def __init__(self, potential, law):
        self.potential, self.law = potential, law
        self.config, self.device = potential.config, potential.device

    def __call__(self, batch):
        found = self.potential(batch)
        if self.law == "energy under rotation":
            tilt = torch.zeros_like(found.energy)
            tilt = tilt.index_add(0, batch.system_idx, batch.positions[:, 0])
            return replace(found, energy=found.energy + 1e-6 * tilt)
        if self.law == "forces = -dE/dR":
            return replace(found, forces=found.forces * (1 + 1e-4))
        return replace(found, energy=found.energy + 1e-6 * batch.n_systems)


@pytest.mark.parametrize("law", ["energy under rotation", "forces = -dE/dR", "batch = single"])
def test_a_broken_law_is_named(run, model, monkeypatch, law):
    potential = Spoilt(dpa4sim.load(model, dtype="float64"), law)
    monkeypatch.setattr(doctor, "_potential", lambda device: (potential, "a spoilt model"))
    code, text, _ = run("doctor")
    assert code == 1
    assert text.rstrip().endswith(f"verdict: not well: {law}.")


def test_a_model_without_forces_fails(run, model, monkeypatch):
    potential = dpa4sim.load(model, dtype="float64")
    for weight in potential.model.parameters():
        weight.zero_()
    monkeypatch.setattr(doctor, "_potential", lambda device: (potential, "a silent model"))
    code, text, _ = run("doctor")
    assert code == 1
    assert "forces" in text.splitlines()[-1]
