"""MACE on the other side of a pipe, in its own environment; it answers one line a command.

    mace_worker.py SIZE STRUCTURES.npz

SIZE: small, medium or large, the shapes of MACE-MP-0 with random weights for the elements of the
structures.  Commands on stdin: `run` makes neighbour lists and one batch of all structures,
evaluates energy, forces and stress, and answers {"wall", "cpu"} in seconds; `save PATH` writes the
last energies and forces.
"""

import json
import os
import sys
import time
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever MACE prints, already when it is imported, goes to stderr
torch.serialization.add_safe_globals([slice])  # e3nn's table of constants has one
from ase import Atoms  # noqa: E402
from ase.data import atomic_numbers  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data as mace_data  # noqa: E402
from mace import modules, tools  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402

HIDDEN = {"small": "128x0e", "medium": "128x0e + 128x1o", "large": "128x0e + 128x1o + 128x2e"}
CUTOFF_A = 6.0

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
torch.set_default_dtype(torch.float32)


def network(size: str, numbers: list[int]) -> torch.nn.Module:
    """The shape that MACE-MP-0 publishes for this size."""
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=CUTOFF_A,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps(HIDDEN[size]),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=60.0,
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        radial_MLP=[64, 64, 64],
    )


def main() -> None:
    stored = np.load(sys.argv[2])
    names = sorted({key.split("/")[0] for key in stored.files})
    structures = [
        Atoms(stored[f"{n}/symbols"], stored[f"{n}/coord"], cell=stored[f"{n}/box"], pbc=True)
        for n in names
    ]
    numbers = sorted({atomic_numbers[s] for n in names for s in stored[f"{n}/symbols"]})
    table = tools.AtomicNumberTable(numbers)
    model = network(sys.argv[1], numbers).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    results = {}
    print(json.dumps({"ready": True, "weights": sum(p.numel() for p in model.parameters())}),
          file=answer, flush=True)  # fmt: skip
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "save":
            np.savez(argument, **results)
            print("{}", file=answer, flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        graphs = [
            mace_data.AtomicData.from_config(
                mace_data.config_from_atoms(atoms), z_table=table, cutoff=CUTOFF_A
            )
            for atoms in structures
        ]
        batch = torch_geometric.Batch.from_data_list(graphs)
        out = model(batch.to_dict(), compute_force=True, compute_stress=True)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results = {
            "energy": out["energy"].detach().numpy(),
            "force": out["forces"].detach().numpy(),
        }
        print(json.dumps({"wall": wall, "cpu": cpu}), file=answer, flush=True)


main()
