"""Verbs on files of several branches."""

from __future__ import annotations

import pytest
import torch

import dpa4sim
from dpa4sim.adapters.deepmd import read_deepmd
from dpa4sim.branches import Branches, branch_names


@pytest.fixture
def several(model, tmp_path):
    """Two branches that differ in one matrix of the head."""
    members = {name: dpa4sim.load(model) for name in ("water", "alloy")}
    with torch.no_grad():
        members["alloy"].model.head.out.mul_(1.5)
    path = tmp_path / "several.safetensors"
    Branches(members).save(path)
    return path


def test_info_lists_them(run, several):
    code, text, err = run("info", several)
    assert (code, err) == (0, "")
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines if line.split()[:1] in (["water"], ["alloy"])] == [
        ["water", "energy"],
        ["alloy", "energy"],
    ]
    assert f"dpa4sim info {several} --branch water" in text
    code, text, _ = run("info", several, "--branch", "alloy")
    assert code == 0
    assert "3: Na Si Cl" in text


def test_eval_and_relax_take_one(run, several, crystals, tmp_path):
    out = tmp_path / "out.extxyz"
    words = ["relax", several, crystals, "-o", out, "--max-steps", 2]
    code, _, err = run(*words)
    assert code == 1
    assert "has the branches water, alloy. Choose one" in err
    assert run(*words, "--branch", "alloy")[0] in (0, 3)
    code, _, err = run(*words, "--branch", "metal")
    assert code == 1
    assert "has no branch 'metal'. It has water, alloy" in err


def test_there_and_back_with_all_branches(run, several, crystals, tmp_path):
    there, back = tmp_path / "there.pt", tmp_path / "back.safetensors"
    assert run("convert", several, there)[0] == 0
    assert run("convert", there, back)[0] == 0
    assert branch_names(there) == branch_names(back) == ("water", "alloy")
    for name in ("water", "alloy"):
        before = dpa4sim.load(several, branch=name).evaluate(crystals)
        after = dpa4sim.load(back, branch=name).evaluate(crystals)
        assert torch.equal(before.energy, after.energy)


def test_one_branch_becomes_a_single_task(run, several, tmp_path):
    assert run("convert", several, tmp_path / "one.pt", "--branch", "alloy")[0] == 0
    _, state = read_deepmd(tmp_path / "one.pt")
    assert torch.equal(state["head.out"], dpa4sim.load(several, branch="alloy").model.head.out)
    code, _, err = run("convert", several, tmp_path / "two.pt", "--branch", "metal")
    assert code == 1
    assert "has no branch 'metal'" in err
    assert not (tmp_path / "two.pt").exists()
    assert branch_names(tmp_path / "one.pt") == ()


def test_a_plain_model_has_no_branch_to_choose(run, model, tmp_path):
    code, _, err = run("convert", model, tmp_path / "x.pt", "--branch", "water")
    assert code == 1
    assert "holds one network only" in err
