"""A step reads nothing back from the device."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toy import Free, crystals, packed, without_bulk

from dpa4sim.pool.pack import rebuild, to_device
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import trivial_orbits, unconstrained

CASES = [("none", 290), ("unit", 690), ("frechet", 980), ("symmetry", 1020)]
"""Cell filter, and a lid on the number of aten calls, views included (measured: 274, 657, 946,
980).  The last is frechet with symmetries to keep."""

READS_BACK = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc"),
    *("_linalg_check_errors", "linalg_inv", "linalg_solve", "allclose", "argwhere"),
)


class Calls(TorchDispatchMode):
    """Counts aten calls by name; an index by a mask counts as the nonzero that it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        flat, _ = tree_flatten(args[1:2])
        masks = [t for t in flat if isinstance(t, torch.Tensor) and t.dtype == torch.bool]
        hidden = name in ("index", "index_put", "index_put_") and masks
        hidden = hidden or (name == "repeat_interleave" and "output_size" not in (kwargs or {}))
        self.names["nonzero" if hidden else name] += 1
        return function(*args, **(kwargs or {}))


def started(cell_filter: str, model: Free | None = None) -> FireState:
    structures = [*crystals().values(), *without_bulk().values()]
    batch = packed(structures)
    free = torch.tensor([bool(atoms.pbc.all()) for atoms in structures])
    freedom = unconstrained(batch, free)
    if cell_filter == "symmetry":
        freedom = replace(freedom, orbits=trivial_orbits(batch))
    names = {"none": None, "symmetry": "frechet"}
    return fire_init(
        batch,
        model or Free(),
        freedom=freedom,
        cell_filter=names.get(cell_filter, cell_filter),
        settings=FireSettings(fmax=1e-300),
    )


@pytest.mark.parametrize(("cell_filter", "most"), CASES)
def test_a_step_calls_nothing_that_reads_back(cell_filter, most):
    state = started(cell_filter)
    with Calls() as calls:
        fire_step(state, Free())
    with Calls() as of_the_model:
        Free()(state.batch)
    found = {name: count for name, count in calls.names.items() if name in READS_BACK}
    assert not found
    total = calls.names.total() - of_the_model.names.total()
    print(f"{cell_filter}: {total} aten calls per step")
    assert total < most


@pytest.mark.parametrize(
    "code", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.unique(), bool]
)
def test_the_count_would_notice(code):
    with Calls() as calls:
        code(torch.ones(1))
    assert set(calls.names) & set(READS_BACK)


@pytest.mark.parametrize(("cell_filter", "most"), CASES)
def test_a_step_runs_on_tensors_without_values(cell_filter, most):
    """On a pretended CUDA device: a read of any value raises, and so does a tensor left behind."""
    state = started(cell_filter)
    with FakeTensorMode():
        empty = rebuild(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"), state)
        after = fire_step(fire_step(empty, Free()), Free())
        with pytest.raises(Exception, match="_local_scalar_dense"):
            after.status.tolist()
    assert after.batch.positions.shape == state.batch.positions.shape
    assert after.batch.positions.device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize(("cell_filter", "most"), CASES)
def test_a_step_on_cuda_does_not_wait(cell_filter, most):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    state = to_device(started(cell_filter), "cuda")
    model = Free(device=torch.device("cuda"))
    state = fire_step(state, model)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            state = fire_step(state, model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.steps.tolist() == [4] * 7
