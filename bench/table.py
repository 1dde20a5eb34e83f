"""docs/performance.md and its picture, made from bench/records; nothing here measures.

python -m bench table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import RECORDS

ROOT = Path(__file__).parents[1]
PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "throughput.png"
ROW = Mapping[str, Any]

HEAD = """# Performance

Made by `python -m bench table` from the records in `bench/records`; `python -m bench CLAIM` makes a
record again. A target that is not met stays in the table with its figure. All times are of the
processor, one core, float32 where nothing else is said; ratios come from runs in which the sides
take turns. **No GPU has run anything here.**
"""


@dataclass(frozen=True)
class Claim:
    """One line of the table.

    Args:
        what: is measured.
        target: of the design; "" where there is none.
        record: name of the record without the hardware.
        read: the figure, and whether the target is met (None where there is none).
    """

    what: str
    target: str
    record: str
    read: Callable[[ROW], tuple[str, bool | None]]


def _inference(peer: str, wanted: float) -> Callable[[ROW], tuple[str, bool | None]]:
    def read(record: ROW) -> tuple[str, bool | None]:
        found = [row["speedup_by_cpu_time"][peer] for row in record["rows"]]
        words = ", ".join(
            f"{row['size']} {row['workload']} {ratio:.2f}"
            for row, ratio in zip(record["rows"], found, strict=True)
        )
        return words, min(found) >= wanted

    return read


def _evaluations(record: ROW) -> tuple[str, bool]:
    shares = {model: sides["lbfgs"] for model, sides in record["summary"].items()}
    words = ", ".join(
        f"{model} {side['share_of_ase_fire']:.2f} ({side['not_converged']} failed)"
        for model, side in shares.items()
    )
    return words, all(side["share_of_ase_fire"] <= 0.25 for side in shares.values())


def _relaxation(record: ROW) -> tuple[str, bool]:
    times = {name: row["lbfgs_times_faster"] for name, row in record["rows"].items()}
    words = ", ".join(f"{name} {times[name]:.1f}" for name in ("torchsim fire", "ase fire"))
    return words, times["torchsim fire"] >= 2


def _dynamics(model: str, names: Mapping[str, float]) -> Callable[[ROW], tuple[str, bool]]:
    def read(record: ROW) -> tuple[str, bool]:
        sides = record["models"][model]
        found = {name: sides[f"torchsim {name}"]["over_ours_cpu"] for name in names}
        words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items())
        fast = {name: sides[f"torchsim {name}"].get("over_compiled_cpu") for name in names}
        if None not in fast.values():
            words += "; compiled: " + ", ".join(f"{n} {ratio:.2f}" for n, ratio in fast.items())
            found = fast
        return words, all(found[name] >= wanted for name, wanted in names.items())

    return read


def _overhead(record: ROW) -> tuple[str, bool]:
    eager, fast = (record["target"][f"times_faster{way}"] for way in ("", "_compiled"))
    return f"{eager:.1f}; compiled {fast:.1f}", fast >= 10


def _growth(record: ROW) -> tuple[str, bool]:
    largest = max(row["atoms"] for row in record["rows"])
    peak = max(row.get("peak_mib", 0.0) for row in record["rows"]) / 1024
    room = f", {peak:.1f} GiB" if peak else ""
    return f"{100 * record['spread']:.0f} % up to {largest:,} atoms{room}", record["spread"] <= 0.1


def _networks(record: ROW) -> tuple[str, None]:
    words = [
        f"{row['workload']} (k {row['k']:.0f}): "
        + ", ".join(f"{side} {1e-3 * us:.1f}" for side, us in row["us_per_atom"].items())
        + " ms per atom"
        for row in record["rows"]
    ]
    return "<br>".join(words), None


def _training(record: ROW) -> tuple[str, bool]:
    (row, *_) = record["rows"]
    found = row["speedup_over_autograd"]
    words = ", ".join(f"{name} {found[name]:.2f}" for name in ("passes", "compiled"))
    return words, found["compiled"] >= 1.2


def _yardstick(record: ROW) -> tuple[str, bool]:
    found = {row["compiled"]: row["times_faster"] for row in record["step_times"]}
    return f"eager {found[False]:.2f}, compiled {found[True]:.2f}", min(found.values()) >= 2


def _modes(record: ROW) -> tuple[str, None]:
    words = []
    for size, row in record["rows"].items():
        for name, load in row["workloads"].items():
            faster, off = load["times_faster_than_exact"], load["force_deviation_eV_A"]
            words.append(
                f"{size}, {name} (k {load['k']:.0f}): fast {faster['fast']:.2f}, compiled "
                f"{faster['compiled']:.2f}; off by {off['exact']:.0e}, {off['fast']:.0e}, "
                f"{off['compiled']:.0e} eV/Å"
            )
    return "<br>".join(words), None


def _compile(record: ROW) -> tuple[str, None]:
    words = [
        f"{size} {row['compile']['cold_wall_s']:.0f} s, then {row['compile']['warm_wall_s']:.1f} s"
        for size, row in record["rows"].items()
    ]
    return ", ".join(words), None


def _memory(record: ROW) -> tuple[str, None]:
    words = [
        f"{size}, {case}: {1e-3 * row['bytes_per_edge']:.1f} kB, {row['edges_per_gib']:,.0f} edges"
        for size, cases in record["rows"].items()
        for case, row in cases.items()
    ]
    return "<br>".join(words), None


def _flops(record: ROW) -> tuple[str, bool]:
    words = [
        f"{size} (k {row['k']:.0f}): {row['mflop_per_atom']:.0f} MFLOP per atom, "
        f"{row['gflop_per_s']:.0f} of {row['ceiling_gflop_per_s']:.0f} GFLOP/s "
        f"({100 * row['share_of_ceiling']:.0f} %)"
        for size, row in record["rows"].items()
    ]
    named = [row["share_of_ceiling"] for size, row in record["rows"].items() if size != "seed"]
    return "<br>".join(words), min(named) >= 0.65


def _neighbors(record: ROW) -> tuple[str, bool]:
    steps = record["neighbors"]
    words = ", ".join(f"k {row['k']:.0f}: {row['us_per_edge']:.0f}" for row in steps)
    times = [row["us_per_edge"] for row in steps]
    return f"{words} µs", max(times) / times[0] - 1 <= 0.1


def _screen_speed(record: ROW) -> tuple[str, None]:
    found = record["rows"]
    words = ", ".join(
        f"{name} {found[name]['structures_per_cpu_hour']:,.0f}"
        for name in ("dpa4sim", "torchsim fire", "ase fire")
    )
    return words, None


CLAIMS = (
    Claim(
        "E + F + stress, DeePMD-kit eager over ours, same weights, allocator tuned on both sides",
        ">= 2.5",
        "inference-tuned",
        _inference("eager", 2.5),
    ),
    Claim("the same, both compiled", ">= 2.2", "inference-tuned", _inference("both compiled", 2.2)),
    Claim(
        'the same, eager, "medium" matrix products there and accuracy="fast" here',
        ">= 2",
        "inference-tuned-medium",
        _inference("eager", 2.0),
    ),
    Claim(
        "the same, eager, default allocator as users meet both",
        ">= 4",
        "inference-default",
        _inference("eager", 4.0),
    ),
    Claim("matrix products: share of the measured GEMM ceiling", ">= 65 %", "flops", _flops),
    Claim(
        "time per edge against the number of neighbours (Neo)",
        "no growth beyond 10 %",
        "flops",
        _neighbors,
    ),
    Claim("settings: times faster than exact, and the forces' error", "", "modes", _modes),
    Claim("`compile=True`: the first time, and every later process", "", "modes", _compile),
    Claim("peak memory per edge; edges per GiB", "", "memory", _memory),
    Claim("time per atom against the number of atoms", "flat to 10 %", "growth-tuned", _growth),
    Claim("the same, seed", "flat to 10 %", "growth-seed", _growth),
    Claim(
        "cost of another network: MACE over ours, random weights, one batch",
        "",
        "networks",
        _networks,
    ),
    Claim(
        "engine's own cost per FIRE + Frechet step, TorchSim over ours, 1024 x 8 atoms",
        ">= 10",
        "overhead",
        _overhead,
    ),
    Claim(
        "force evaluations to fmax 0.02, share of ASE FIRE's",
        "<= 0.25",
        "evaluations",
        _evaluations,
    ),
    Claim(
        "512 relaxations end to end, times faster than",
        ">= 2 (TorchSim)",
        "relaxation",
        _relaxation,
    ),
    Claim(
        "MD of 1000 x 8 atoms without a model, TorchSim over ours",
        "npt >= 5, nvt >= 1.5",
        "dynamics",
        _dynamics("free", {"nvt langevin": 1.5, "npt isotropic": 5.0}),
    ),
    Claim(
        "the same with seed",
        "npt >= 5, nvt >= 1.5",
        "dynamics",
        _dynamics("seed", {"nvt langevin": 1.5, "npt isotropic": 5.0}),
    ),
    Claim("training step over our own autograd", ">= 1.2", "training_step", _training),
    Claim("training step, DeePMD-kit over ours", ">= 2", "yardstick", _yardstick),
    Claim("screening campaign, structures per hour of a core", "", "screen_speed", _screen_speed),
    Claim(
        "2,000 candidates against 150,000 references",
        "about 8 s",
        "hull",
        lambda r: (f"{r['hull_cpu_s']:.1f} s", r["hull_cpu_s"] <= 10),
    ),
)

TAIL = """
## What limits it

- **Inference**: {share}. A tenth is outside the edges; the rest is activations, gathers, rotations
  and the additions around Gauss' products (docs/kernels.md has them as single kernels for CUDA); on
  a processor `compile=True` makes single loops of them, once for each shape of network: 3 to 8 %
  of the whole in Neo and Air.
- **Accuracy "fast"** multiplies bfloat16 numbers on processors with AMX, in products that are large
  enough, and equals "exact" on others: there PyTorch's "medium" is float32 by another library,
  whose preparation makes many small products slower (on AVX512_BF16 without AMX 0.5 to 0.8 times
  as fast as "exact").  "high" equals "exact" but in the Triton kernels: three TF32 products.
- **`compile=True`** removes what PyTorch costs per operation, so it gains most where structures are
  few and small. With many edges the kernels written by hand, whose chunks stay in the cache, do
  without the memory of all edges at once; only their loops are compiled.
- **Engine's own cost**: eager, some thousand small operations a step; a model that was loaded with
  `compile=True` has them compiled to a few loops, once for each kind of processor (one to two
  minutes for each kind of step, then found on the disk).  Of an L-BFGS step, which is not compiled,
  two thirds are the sums over bonds of its model Hessian.  On CUDA a whole step is launched as one
  graph besides (docs/kernels.md), which no GPU has timed yet.
- **Dynamics without a model**: eager slower than TorchSim on a processor, where a third of a
  Langevin step makes random numbers by counter (a trajectory is the same in any batch) and the rest
  is many small operations that judge each system and leave sick ones where they were; nothing is
  read back from the device.  Compiled, what is left is the random numbers themselves, the sums over
  the atoms of a system, and 0.1 ms to call the loops.  With a model that costs something both take
  the same.
- **Memory**: batches of very many edges store only a quarter of the machine's memory and make the
  rest again ("inference, large" stores nothing at all): slower by a few per cent up to a third.
- **Training step**: of a compiled one two fifths are matrix products, many of them narrow (9 and 18
  columns run at a third of what the wide ones reach); a sixth moves edges from the order of their
  neighbours to that of their centers and back; the compiled loops are less than a tenth, the rest
  is the radial network, the optimiser and the calls.  Next: sums at the centers that read the
  neighbours' order where it lies.

![Time per atom against size: the network and the engine](throughput.png)
"""


def newest(name: str) -> dict[str, dict[str, Any]]:
    """Records of a claim by hardware."""
    found = {}
    for path in sorted(RECORDS.glob(f"{name}.*.json")):
        record = json.loads(path.read_text())
        found[record["hardware"]] = record
    return found


def lines(claims: Sequence[Claim]) -> list[str]:
    """The rows of the table that have a record."""
    rows = []
    for claim in claims:
        for hardware, record in newest(claim.record).items():
            figure, met = claim.read(record)
            verdict = {True: "met", False: "**missed**", None: ""}[met]
            cells = (claim.what, claim.target, figure, verdict, f"`{claim.record}`", hardware)
            rows.append("| " + " | ".join(cells) + " |")
    return rows


def text() -> str:
    """The page."""
    (flops, *_) = newest("flops").values()
    neo = flops["rows"]["neo"]["share_of_ceiling"]
    share = f"Neo's matrix products alone would take {100 * neo:.0f} % of its time at the ceiling"
    head = "| what | target | measured | | record | hardware |\n|---|---|---|---|---|---|"
    return "\n".join([HEAD, head, *lines(CLAIMS), TAIL.format(share=share)])


def draw(path: Path) -> None:
    """Time per atom against the number of atoms and of structures."""
    from matplotlib.figure import Figure

    from dpa4sim.plots import DPI, INK, PALETTE

    figure = Figure(figsize=(8.6, 3.8), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    (network,) = newest("growth-tuned").values()
    points = [
        (row["atoms"], 1e3 * row["ms_per_atom"]) for row in network["rows"] if row["systems"] == 1
    ]
    left.plot(
        *zip(*sorted(points), strict=True), "o-", color=PALETTE[0], label="Neo, one cell of silicon"
    )
    cells = [
        (row["atoms"], 1e3 * row["ms_per_atom"])
        for row in network["rows"]
        if row["atoms"] == 8 * row["systems"]
    ]
    left.plot(
        *zip(*sorted(cells), strict=True),
        "s--",
        color=PALETTE[1],
        label="Neo, many cells of 8 atoms",
    )
    left.set(xscale="log", ylim=(0, None), xlabel="atoms", ylabel="µs per atom, E + F + stress")
    (engine,) = newest("engine_growth").values()
    for colour, optimizer in zip(PALETTE, ("fire", "lbfgs"), strict=False):
        steps = [
            (row["systems"], row["us_per_atom"])
            for row in engine["rows"]
            if row["ladder"] == "structures"
            and row["model"] == "free"
            and row["optimizer"] == optimizer
        ]
        right.plot(
            *zip(*sorted(steps), strict=True),
            "o-",
            color=colour,
            label=f"{optimizer} step, no model",
        )
    right.set(
        xscale="log", yscale="log", xlabel="structures of 8 atoms", ylabel="µs per atom and step"
    )
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    figure.savefig(path)


def main(arguments: list[str]) -> None:
    """Write the page and its picture."""
    del arguments
    PAGE.write_text(text())
    draw(PLOT)
    print(f"{PAGE} and {PLOT}")
