"""The README's python blocks and calls of dpa4sim run; its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

import dpa4sim
from dpa4sim.cli import main
from dpa4sim.model_file import released

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
BASH = [code for language, code in BLOCKS if language == "bash"]
LINKS = re.findall(r"\]\(([^)#]+)\)", TEXT)

needs_seed = pytest.mark.skipif(
    "seed" not in released(), reason="no released model 'seed' in this package"
)


@pytest.fixture
def folder(tmp_path):
    """The files that the README's commands name, small."""
    silicon = bulk("Si", "diamond", a=5.45)
    salt = bulk("NaCl", "rocksalt", a=5.62)
    write(tmp_path / "silicon.cif", silicon)
    write(tmp_path / "more.extxyz", [salt, silicon])
    for atoms in (silicon, salt):
        atoms.info["REF_energy"] = -1.0
    write(tmp_path / "labelled.extxyz", [silicon, salt])
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    dpa4sim.load("seed").save(tmp_path / "my_model.safetensors")
    convert = ["convert", str(tmp_path / "my_model.safetensors"), str(tmp_path / "my_model.pt")]
    assert main(convert) == 0
    return tmp_path


def execute(words, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_blocks_are_found():
    assert len(PYTHON) == 3
    assert all("dpa4sim " in code for code in BASH)
    assert len(BASH) == 5
    assert {language for language, _ in BLOCKS} == {"", "bash", "python"}


@needs_seed
@pytest.mark.parametrize("code", PYTHON)
def test_python_block(code, folder):
    assert execute([sys.executable, "-c", code], folder)


@needs_seed
@pytest.mark.parametrize("code", BASH)
def test_bash_block(code, folder):
    assert execute(["bash", "-euc", code], folder)


@pytest.mark.parametrize("target", sorted(set(LINKS)))
def test_link(target):
    if target == "docs/demo.png" and "seed" not in released():
        pytest.skip("the picture is made with the released model 'seed'")
    assert target.startswith("https://") or (ROOT / target).exists()


def test_every_make_target_is_there():
    rules = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make (\w+) ", TEXT)) & {"demo", "test", "lint", "peers"}
    assert named >= {"demo", "test"}
    for target in named:
        assert re.search(rf"^{target}:", rules, flags=re.M), target


def test_every_verb_is_a_verb():
    from dpa4sim.cli import VERBS

    named = re.findall(r"dpa4sim (\w+)", "\n".join(BASH))
    assert named
    assert set(named) <= set(VERBS)
