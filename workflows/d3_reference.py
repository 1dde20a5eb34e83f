"""The reference data of DFT-D3 as one small file: dpa4sim/d3.safetensors.

    python workflows/d3_reference.py [-o FILE]

It needs the packages tad-dftd3 0.7 and the tad-mctc that it names (Apache-2.0), which carry the
reference systems of Grimme, Antony, Ehrlich and Krieg, J. Chem. Phys. 132, 154104, as tensors.  The
actinides are left out: they have more than the five reference systems that the kernel takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

N_REFERENCES = 5


def collect() -> dict[str, torch.Tensor]:
    """`c6` of the pairs i <= j, and by atomic number `cn`, `r4r2`, `covalent_radii`; a.u."""
    from tad_dftd3.data import R4R2
    from tad_dftd3.reference import Reference
    from tad_mctc.data import COV_D3

    reference = Reference(dtype=torch.float64)
    counts = (reference.cn >= 0).sum(1)
    too_many = [z for z in range(1, len(counts)) if counts[z] > N_REFERENCES]
    last = min(too_many) - 1
    row, column = torch.triu_indices(last + 1, last + 1)
    tensors = {
        "c6": reference.c6[row, column, :N_REFERENCES, :N_REFERENCES],
        "cn": reference.cn[: last + 1, :N_REFERENCES],
        "r4r2": R4R2(dtype=torch.float64)[: last + 1],
        "covalent_radii": COV_D3(dtype=torch.float64)[: last + 1],
    }
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("dpa4sim/d3.safetensors"))
    args = parser.parse_args(words)
    origin = f"tad-dftd3 {version('tad-dftd3')}, tad-mctc {version('tad-mctc')}; Apache-2.0"
    save_file(collect(), args.out, metadata={"origin": origin})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
