"""Which tile is fastest for each Triton kernel, as rows to paste into `triton_tiles.MEASURED`.

    python -m bench tiles [--sizes neo plus pro] [--atoms 2000] [--accuracy high] [--rounds 15]
    python -m bench tiles --compile     no GPU: what each kernel needs of an H200, by its compiler
    python -m bench tiles --quick       no GPU: a tiny sweep by the interpreter, for show

A candidate counts only if its result equals that of the safe tile.  One kernel's tile is changed
at a time and the operation around it is timed by CUDA events, candidates in turn.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from dpa4sim.config import NAMED_SIZES, DPA4Config
from dpa4sim.kernels import triton_tiles
from dpa4sim.kernels.edge_convolution import Plan
from dpa4sim.kernels.triton_plan import TritonPlan
from dpa4sim.kernels.triton_tiles import Tile
from dpa4sim.model.edge_features import FrameLayout
from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.so2_stack import SO2Stack

NEIGHBORS = 70
"""Edges of an atom; the mean of common crystals within 6 Å."""

CHIP_BYTES = 232_448
"""Shared memory that a program may have on compute capability 9.0."""

ROUNDING = 1e-3
"""Two tiles sum in another order, in float32 or TF32; a wrong tile is off by order 1."""

Operation = Callable[[], tuple[Tensor, ...]]


def candidates(kernel: str) -> list[Tile]:
    """Tiles worth a try."""
    if kernel.startswith("stack"):
        wide = [Tile(b, w, 2, c, 32) for b, c, w in product((32, 64, 128), (32, 64, 128), (4, 8))]
        return wide + [Tile(b, 4, s, 32, d) for b, s, d in product((32, 64), (1, 3), (16, 64))]
    if kernel.startswith("grid"):
        return [Tile(b, w, 1, c) for b, c, w in product((16, 32, 64), (32, 64), (2, 4, 8))]
    if kernel == "scatter_edges_backward" or kernel.startswith("gather_edges"):
        return [Tile(b, w, 1) for b, w in product((1, 2, 4, 8, 16), (1, 2, 4))]
    if kernel.startswith("assemble"):
        return [Tile(b, w, 1) for b, w in product((32, 64, 128), (1, 2, 4))]
    return [Tile(b, w, s) for b, w, s in product((16, 32, 64, 128), (2, 4, 8), (1, 2, 3))]


def random_plan(
    size: str, atoms: int, accuracy: Any, device: str, degree: int = NEIGHBORS
) -> TritonPlan:
    """The stack of a paper size over a random graph.

    Args:
        degree: edges of each atom.
    """
    config = DPA4Config(species=("Si",), **NAMED_SIZES[size])
    L, M, C = config.max_degree, config.max_order, config.channels
    terms = config.product_rank
    stack = SO2Stack(config, L, M).to(device).requires_grad_(False)
    neighbor = torch.randint(0, atoms, (atoms * degree,), device=device)
    plan = Plan(
        width=C,
        terms=terms,
        max_degree=L,
        max_order=M,
        lift=FrameLayout.build(L, M).lift.to(device, torch.float32),
        degree_of_lm=torch.tensor(degree_of_lm(L), device=device),
        layers=stack.layers(0),
        neighbor=neighbor,
        offsets=tuple(range(0, atoms * degree + 1, degree)),
        keep_bytes=0,
    )
    return TritonPlan.of(plan, accuracy=accuracy)


def operations(plan: TritonPlan) -> dict[str, Operation]:
    """What is timed for each kernel: one call forward, or one backward."""
    from dpa4sim.kernels.triton_gather import gather
    from dpa4sim.kernels.triton_scatter import scatter
    from dpa4sim.kernels.triton_so2 import stack, tile_name

    like = plan.stack.zonal
    n_edges, L, M, C = len(plan.neighbor), plan.max_degree, plan.max_order, plan.width
    columns = plan.spans[-1][1]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=like.device).requires_grad_(True)

    node, kernel = leaf(plan.graph.n_atoms, plan.terms * plan.n_lm, C), leaf(n_edges, columns)
    rows, alpha = leaf(n_edges, 2 * M + 1, (L + 1) ** 2), leaf(n_edges, 1)
    x = leaf(n_edges, plan.n_rows * C)

    def gather_backward() -> tuple[Tensor, ...]:
        leaves = node, kernel, rows
        return torch.autograd.grad(gather(*leaves, plan), leaves, torch.ones_like(x))

    def scatter_backward() -> tuple[Tensor, ...]:
        leaves = x, rows, alpha
        out = scatter(*leaves, plan)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return {
        "gather_edges": lambda: (gather(node, kernel, rows, plan),),
        "gather_edges_backward": gather_backward,
        "gather_atoms_backward": gather_backward,
        tile_name("forward", plan.accuracy): lambda: (stack(x, plan),),
        tile_name("backward", plan.accuracy): lambda: torch.autograd.grad(
            stack(x, plan), x, torch.ones_like(x)
        ),
        "scatter_atoms": lambda: (scatter(x, rows, alpha, plan),),
        "scatter_edges_backward": scatter_backward,
        **_grid_operations(plan, leaf),
        **_assembly(plan, leaf),
    }


def _grid_operations(plan: TritonPlan, leaf: Callable[..., Tensor]) -> dict[str, Operation]:
    """The grid product of the feed-forward unit, three times as wide as the channels."""
    from dpa4sim.kernels.triton_grid import grid_product
    from dpa4sim.model.grid import sphere_grid

    tables, hidden, like = sphere_grid(plan.max_degree), 3 * plan.width, plan.stack.zonal
    to_grid, from_grid = tables.to_grid.to(like), tables.from_grid.to(like)
    n = plan.graph.n_atoms
    a, b = leaf(n, plan.n_lm, hidden), leaf(n, plan.n_lm, hidden)
    pair, logit = leaf(n, 2 * hidden), leaf(n, hidden)

    def forward() -> Tensor:
        return grid_product(a, b, pair, logit, to_grid, from_grid, plan.accuracy)

    def backward() -> tuple[Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, (a, b, pair, logit), torch.ones_like(out))

    return {
        "grid_forward": lambda: (forward(),),
        "grid_backward": backward,
    }


def _assembly(plan: TritonPlan, leaf: Callable[..., Tensor]) -> dict[str, Operation]:
    """Forces, virial and energy of one system."""
    from dpa4sim.kernels.triton_assemble import assemble_sums

    n_edges, n_atoms = len(plan.neighbor), plan.graph.n_atoms
    gradient, vector, energies = leaf(n_edges, 3), leaf(n_edges, 3), leaf(n_atoms)
    count = plan.neighbor.new_full((1,), n_atoms)

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        return assemble_sums(gradient, vector, energies, plan.graph, count)

    return {"assemble_atoms": run, "assemble_systems": run}


def shape_of(kernel: str, plan: TritonPlan) -> tuple[int, ...]:
    """The key of the tile table."""
    if kernel.startswith("assemble"):
        return ()
    if not kernel.startswith("grid"):
        return plan.max_degree, plan.max_order, plan.width
    from dpa4sim.model.grid import sphere_grid

    return plan.n_lm, sphere_grid(plan.max_degree).to_grid.shape[0], 3 * plan.width


@contextmanager
def tile_in_use(kernel: str, tile: Tile) -> Iterator[None]:
    """Only this tile for one kernel, whatever the tables say."""
    safe, measured = triton_tiles.DEFAULT[kernel], dict(triton_tiles.MEASURED)
    triton_tiles.DEFAULT[kernel] = tile
    triton_tiles.MEASURED.clear()
    try:
        yield
    finally:
        triton_tiles.DEFAULT[kernel] = safe
        triton_tiles.MEASURED.update(measured)


def seconds(run: Operation, rounds: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(rounds):
        if torch.cuda.is_available():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times.append(1e-3 * start.elapsed_time(stop))
        else:
            begin = perf_counter()
            run()
            times.append(perf_counter() - begin)
    return median(times)


def sweep(kernel: str, run: Operation, tiles: list[Tile], rounds: int) -> list[tuple[float, Tile]]:
    """(seconds, tile) of the candidates that fit and agree, fastest first."""
    from triton.runtime.errors import OutOfResources

    wanted, found = [tensor.detach() for tensor in run()], []
    for tile in tiles:
        with tile_in_use(kernel, tile):
            try:
                result = run()
            except OutOfResources:
                continue
            scale = max(float(tensor.abs().max()) for tensor in wanted)
            pairs = zip(result, wanted, strict=True)
            if any(float((a.detach() - b).abs().max()) > ROUNDING * scale for a, b in pairs):
                print(f"  {kernel} {tile}: a wrong result")
                continue
            found.append((seconds(run, rounds), tile))
    return sorted(found, key=lambda pair: pair[0])


def report(plan: TritonPlan, rounds: int, *, few: bool) -> None:
    """Sweep every kernel of a plan and print the rows of the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    for kernel, run in operations(plan).items():
        tiles = candidates(kernel)[:: 9 if few else 1]
        found = sweep(kernel, run, [triton_tiles.DEFAULT[kernel], *tiles], rounds)
        (best, tile), (worst, _) = found[0], found[-1]
        values = ", ".join(str(value) for value in astuple(tile))
        print(
            f'    ("{name}", "{kernel}", {shape_of(kernel, plan)}): Tile({values}),'
            f"  # {1e6 * best:.0f} µs, slowest of {len(found)} {1e6 * worst:.0f}",
            flush=True,
        )


class _Hopper:
    """Stands in for a driver: it names the target, and has no device to ask."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_only(plan: TritonPlan) -> None:
    """Compile every kernel for compute capability 9.0 and print what it takes.

    Raises:
        SystemExit: a kernel does not fit on the chip.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Hopper())
    original, needs = JITFunction.run, {}

    def compile_one(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = original(self, *args, grid=grid, warmup=True, **options)
        needs[self.fn.__name__] = (compiled.metadata.shared, *_registers(compiled.asm["ptx"]))
        return compiled

    JITFunction.run = compile_one
    try:
        for run in operations(plan).values():
            run()
    finally:
        JITFunction.run = original
    print(f"{'kernel':28}shared bytes  registers  spilled bytes")
    for name, (shared, registers, spilled) in needs.items():
        print(f"{name.lstrip('_'):28}{shared:12d}{registers:11d}{spilled:15d}")
    large = [name for name, (shared, *_) in needs.items() if shared > CHIP_BYTES]
    if large:
        raise SystemExit(f"These do not fit into {CHIP_BYTES} bytes: {', '.join(large)}")


def _registers(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, by the assembler that comes with triton."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(source), "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (
        re.search(pattern, said) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill stores")
    )
    if registers is None or spilled is None:
        raise RuntimeError(f"The assembler's report has changed:\n{said}")
    return int(registers[1]), int(spilled[1])


def main(arguments: list[str]) -> None:
    """Sweep, or compile, or show."""
    parser = argparse.ArgumentParser(prog="python -m bench tiles", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(NAMED_SIZES), default=["air", "plus"])
    parser.add_argument("--atoms", type=int, default=2000)
    parser.add_argument("--accuracy", choices=["exact", "high", "fast"], default="high")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="for an H200, without one")
    parser.add_argument("--quick", action="store_true", help="two atoms by the interpreter")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    if args.quick:
        os.environ["TRITON_INTERPRET"] = "1"
        report(random_plan("neo", 2, args.accuracy, "cpu", degree=2), 1, few=True)
        return
    if not (args.compile or torch.cuda.is_available()):
        raise SystemExit("There is no CUDA device to measure. Use --compile or --quick.")
    for size in args.sizes:
        if args.compile:
            compile_only(random_plan(size, 2, args.accuracy, "cpu", degree=2))
        else:
            report(random_plan(size, args.atoms, args.accuracy, "cuda"), args.rounds, few=False)
