"""Our model as a DeePMD-kit checkpoint, frozen by DeePMD-kit, run by LAMMPS's pair_style deepmd."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_potential

from dpa4sim.adapters.deepmd import write_deepmd
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config

pytestmark = [pytest.mark.peer, pytest.mark.slow]

CONFIG = DPA4Config(
    species=("O", "Si"), cutoff=4.0, channels=8, n_blocks=2, max_degree=2, so2_layers=2
)
"""Two blocks, so that a rank needs features of atoms that another rank owns."""

BOX = np.array([[9.0, 0.0, 0.0], [1.0, 9.5, 0.0], [-0.5, 0.7, 10.0]])
TOLERANCE = 1e-10
"""eV, eV/Å, and per largest virial in eV; 3e-12 is what we see."""

INPUT = """
units metal
atom_style atomic
atom_modify map yes
read_data atoms.data
pair_style deepmd {model}
pair_coeff * * O Si
fix move all nve
compute p all pressure NULL virial
thermo 5
thermo_style custom step pe c_p[1] c_p[2] c_p[3] c_p[4] c_p[5] c_p[6] vol
thermo_modify format float %.17g
dump each all custom 5 dump.txt id x y z fx fy fz
dump_modify each sort id format float %.17g
print "nktv2p $(1.6021765e6)"
run 10
"""
BAR = 1.6021765e6
"""1 eV/Å^3 as LAMMPS's `units metal` has it."""


@pytest.fixture(scope="module")
def environment(deepmd_python: Path) -> dict[str, str]:
    """For DeePMD-kit's programs; its wheel wants CUDA 12's runtime beside PyTorch's CUDA 13."""
    if not os.environ.get("DPA4SIM_LONG"):
        pytest.skip(
            "Freezing by DeePMD-kit compiles for five minutes. Set DPA4SIM_LONG=1 to do it."
        )
    if not deepmd_python.with_name("lmp").is_file():
        pytest.skip(
            "The DeePMD-kit beside the repository came without LAMMPS. "
            "Remove .peers/deepmd and `make peers`, which installs deepmd-kit[torch,lmp]."
        )
    site = deepmd_python.parents[1] / "lib" / "python3.12" / "site-packages"
    threads = ("OMP_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS")
    found = dict(os.environ) | dict.fromkeys([*threads, "DP_INTER_OP_PARALLELISM_THREADS"], "1")
    libraries = str(site / "nvidia" / "cuda_runtime" / "lib")
    return found | {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": libraries}


@pytest.fixture(scope="module")
def frozen(
    deepmd_python: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> Path:
    """`dpa4sim convert` and `dp --pt freeze`, kept by pytest's cache: it compiles for minutes."""
    cache: pytest.Cache = request.config.cache  # type: ignore[assignment]
    folder = cache.mkdir("pair_deepmd")
    potential = random_potential(CONFIG)
    digest = hashlib.sha256(f"{deepmd_python} {CONFIG}".encode())
    for name, value in sorted(potential.model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    with open(folder / "lock", "w") as lock:  # pytest-xdist: one worker compiles, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        package = folder / f"{digest.hexdigest()[:16]}.pt2"
        if not package.exists():
            write_deepmd(CONFIG, potential.model.state_dict(), folder / "model.pt")
            dp = deepmd_python.with_name("dp")
            words = [dp, "--pt", "freeze", "-c", "model.pt", "-o", "partial"]
            output(words, folder, environment)
            (folder / "partial.pt2").rename(package)
    return package


def output(words: list[object], folder: Path, environment: dict[str, str]) -> str:
    """What a program prints; its last words are the error message."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout[-1500:] + done.stderr[-1500:]
        pytest.fail(f"{words[0]} failed:\n{said}", pytrace=False)
    return done.stdout


def write_atoms(path: Path) -> list[int]:
    """36 shaken atoms as LAMMPS data; their atomic numbers."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, (3, 3, 4)), indexing="ij"), -1).reshape(-1, 3)
    fractions = (grid / (3, 3, 4) + 0.03 * rng.normal(size=grid.shape)) % 1
    kinds = rng.integers(1, 3, len(grid))
    lines = [f"made by a test\n\n{len(grid)} atoms\n2 atom types\n"]
    lines += [f"0 {BOX[i, i]} {axis}lo {axis}hi" for i, axis in enumerate("xyz")]
    lines += [f"{BOX[1, 0]} {BOX[2, 0]} {BOX[2, 1]} xy xz yz\n\nMasses\n\n1 16\n2 28\n"]
    lines += ["Atoms # atomic\n"]
    for index, (kind, place) in enumerate(zip(kinds, fractions @ BOX, strict=True), 1):
        lines.append(f"{index} {kind} " + " ".join(f"{x:.17g}" for x in place))
    path.write_text("\n".join(lines) + "\n")
    return [(8, 14)[kind - 1] for kind in kinds]


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_pair_style_deepmd_gives_our_numbers(
    n_ranks: int, frozen: Path, deepmd_python: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """At the start and after 5 and 10 steps, on one MPI rank and on two."""
    numbers = write_atoms(tmp_path / "atoms.data")
    (tmp_path / "in.txt").write_text(INPUT.format(model=frozen))
    words = [deepmd_python.with_name("mpirun"), "-n", n_ranks, deepmd_python.with_name("lmp")]
    said = output([*words, "-in", "in.txt"], tmp_path, environment)
    assert f" by {n_ranks} MPI processor grid" in said or n_ranks == 1
    rows = [line.split() for line in said.splitlines()]
    thermo = [row for row in rows if len(row) == 9 and row[0] in ("0", "5", "10")]
    frames = (tmp_path / "dump.txt").read_text().split("ITEM: TIMESTEP")[1:]
    assert len(thermo) == len(frames) == 3
    potential = random_potential(CONFIG)
    for row, frame in zip(thermo, frames, strict=True):
        table = np.loadtxt(frame.splitlines()[-len(numbers) :])
        batch = Batch.single(torch.tensor(table[:, 1:4]), numbers, torch.tensor(BOX), True)
        own = potential(batch)
        energy, *bars, volume = map(float, row[1:])
        pressure = np.array(bars) / BAR
        stress = own.stress[0].numpy()
        ours = -np.array(
            [stress[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
        )
        assert abs(energy - float(own.energy[0])) < TOLERANCE
        assert np.abs(table[:, 4:] - own.forces.numpy()).max() < TOLERANCE
        assert np.abs(pressure - ours).max() < TOLERANCE * max(1 / volume, np.abs(ours).max())
