"""Scripts that run in a peer's own environment, and their answers, which are kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa4sim.batch import Batch

from .option_sets import ATOMIC_NUMBERS, TYPE_MAP


def run_script(python: Path, script: Path, *words: object) -> None:
    """A script in the peer's environment; its last words are the error message."""
    done = subprocess.run(
        [str(python), str(script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        pytest.fail(f"{script.name} failed:\n{done.stderr[-2000:]}", pytrace=False)


def kept_answers(
    request: pytest.FixtureRequest,
    name: str,
    about: object,
    sources: Iterable[Path],
    make: Callable[[Path], None],
) -> Path:
    """A folder of answers, made anew when the sources change.

    Args:
        name: of its place in pytest's cache.
        about: what the answers depend on besides.
        make: fills an empty folder.
    """
    cache: pytest.Cache = request.config.cache  # type: ignore[assignment]
    root = cache.mkdir(name)
    digest = hashlib.sha256(str(about).encode())
    for source in (*sources, Path(__file__)):
        digest.update(source.read_bytes())
    folder = root / digest.hexdigest()[:16]
    with open(root / "lock", "w") as lock:  # pytest-xdist: one worker builds, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for stale in root.glob("[0-9a-f]*"):
                shutil.rmtree(stale)
            partial = root / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


def write_system(folder: Path, sets: Iterable[Mapping[str, np.ndarray]]) -> None:
    """A crystal of seven atoms, shaken, as a DeePMD system.

    Args:
        sets: the labels of each set, frames first.
    """
    rng = np.random.default_rng(3)
    folder.mkdir()
    cell = np.array([[5.2, 0, 0], [0.4, 5.4, 0], [0.1, -0.3, 5.6]])
    sites = np.array([[i, j, k] for i in (0, 0.5) for j in (0, 0.5) for k in (0, 0.5)])[:7] @ cell
    (folder / "type.raw").write_text("0\n1\n1\n3\n4\n1\n2\n")
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP) + "\n")
    for index, labels in enumerate(sets):
        part = folder / f"set.{index:03d}"
        part.mkdir()
        n = len(next(iter(labels.values())))
        coord = sites + 0.25 * rng.normal(size=(n, 7, 3))
        np.save(part / "coord.npy", coord.reshape(n, -1))
        np.save(part / "box.npy", np.tile(cell.reshape(1, 9), (n, 1)))
        for name, values in labels.items():
            np.save(part / f"{name}.npy", values)


def batch_of(given: Mapping[str, np.ndarray]) -> Batch:
    """A structure of an .npz file."""
    periodic = given["box"].size > 0
    numbers = [ATOMIC_NUMBERS[TYPE_MAP[kind]] for kind in given["atype"]]
    box = torch.as_tensor(given["box"]) if periodic else None
    return Batch.single(torch.as_tensor(given["coord"]), torch.tensor(numbers), box, pbc=periodic)
