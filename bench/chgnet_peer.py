"""CHGNet as an EnergyModel of this package; the network runs in its own environment."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import torch

from dpa4sim.batch import Batch
from dpa4sim.potential import Prediction


class CHGNet:
    """CHGNet 0.4.2 behind a pipe.

    Args:
        python: interpreter of an environment that has chgnet.
    """

    device = torch.device("cpu")
    cutoff = 6.0

    def __init__(self, python: str):
        worker = Path(__file__).with_name("chgnet_worker.py")
        self.process = subprocess.Popen(
            [python, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress; the energy of an atom is its share of the whole."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            positions=batch.positions.numpy(),
            numbers=batch.atomic_numbers.numpy(),
            cell=batch.cell.numpy(),
            n_atoms=batch.n_atoms.numpy(),
        )
        found = self._ask(buffer.getvalue())
        energy = torch.from_numpy(found["energy"])
        return Prediction(
            energy=energy,
            forces=torch.from_numpy(found["forces"]).double(),
            stress=torch.from_numpy(found["stress"]).double(),
            atomic_energies=(energy / batch.n_atoms)[batch.system_idx],
        )

    def close(self) -> None:
        """End the worker."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()

    def _ask(self, message: bytes) -> dict[str, np.ndarray]:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("CHGNet's pipes are not open.")
        stdin.write(len(message).to_bytes(8, "little") + message)
        stdin.flush()
        header = stdout.read(8)
        if not header:
            raise RuntimeError("CHGNet's process ended; run bench/chgnet_worker.py by hand.")
        with np.load(io.BytesIO(stdout.read(int.from_bytes(header, "little")))) as answer:
            return dict(answer)
