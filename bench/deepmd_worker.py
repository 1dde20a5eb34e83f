"""DeePMD-kit on the other side of a pipe, in its own environment; it answers one line a command.

    deepmd_worker.py CHECKPOINT STRUCTURES.npz

Commands on stdin: `run` evaluates every structure and answers {"wall", "cpu"} in seconds;
`save PATH` writes the last energies and forces.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from deepmd.infer import DeepPot

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever DeePMD-kit prints goes to stderr
    potential = DeepPot(sys.argv[1])
    torch.set_float32_matmul_precision(os.environ.get("MATMUL_PRECISION", "highest"))
    data = np.load(sys.argv[2])
    names = sorted({key.split("/")[0] for key in data.files})
    types = potential.get_type_map()
    inputs = []
    for name in names:
        box = data[f"{name}/box"]
        kinds = [types.index(symbol) for symbol in data[f"{name}/symbols"]]
        inputs.append((data[f"{name}/coord"].reshape(1, -1), box.reshape(1, 9), kinds))
    results = {}
    print(
        json.dumps({"ready": True, "precision": torch.get_float32_matmul_precision()}),
        file=answer,
        flush=True,
    )
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "save":
            np.savez(argument, **results)
            print("{}", file=answer, flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        for name, (coord, box, kinds) in zip(names, inputs, strict=True):
            energy, force, _ = potential.eval(coord, box, kinds)[:3]
            results[f"{name}/energy"], results[f"{name}/force"] = energy, force
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"wall": wall, "cpu": cpu}), file=answer, flush=True)


main()
