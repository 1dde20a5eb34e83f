"""A step of dynamics reads nothing back from the device, and makes few calls."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toy import Free, crystals, packed

from dpa4sim.pool.pack import flatten, rebuild, to_device
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.state import MDState, md_init, set_conditions

STEPS = {
    "nve": nve_step,
    "langevin": langevin_step,
    "bussi": bussi_step,
    "isotropic": c_rescale_step,
    "anisotropic": partial(c_rescale_step, coupling="anisotropic"),
    "triclinic": partial(c_rescale_step, coupling="triclinic"),
}
MOST = {
    "nve": 95,
    "langevin": 265,
    "bussi": 280,
    "isotropic": 390,
    "anisotropic": 490,
    "triclinic": 490,
}
"""Lids on the number of aten calls, views apart."""

READS_BACK = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc"),
    *("_linalg_check_errors", "linalg_inv", "linalg_solve", "allclose", "argwhere"),
)
VIEWS = (
    *("select", "unsqueeze", "slice", "expand", "view", "transpose", "unbind", "alias"),
    *("_unsafe_view", "detach", "diagonal", "permute"),
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


def started(copies: int = 1) -> MDState:
    batch = packed(list(crystals().values()) * copies)
    return md_init(batch, Free(), conditions=set_conditions(batch, n_steps=1000))


def counted(name: str, state: MDState) -> Counter[str]:
    with Calls() as calls:
        STEPS[name](state, Free())
    with Calls() as of_the_model:
        Free()(state.batch)
    return calls.names - of_the_model.names


@pytest.mark.parametrize("name", STEPS)
def test_a_step_calls_nothing_that_reads_back(name):
    calls = counted(name, started())
    assert not {call: count for call, count in calls.items() if call in READS_BACK}
    total = sum(count for call, count in calls.items() if call not in VIEWS)
    print(f"{name}: {total} aten calls per step")
    assert total <= MOST[name]


@pytest.mark.parametrize("name", STEPS)
def test_the_number_of_calls_does_not_grow_with_the_systems(name):
    assert counted(name, started(4)) == counted(name, started(1))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_runs_on_tensors_without_values(name):
    """On a pretended CUDA device: a read of any value raises, and so does a tensor left behind."""
    state = started()
    with FakeTensorMode():
        empty = rebuild(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"), state)
        after = STEPS[name](STEPS[name](empty, Free()), Free())
        with pytest.raises(Exception, match="_local_scalar_dense"):
            after.status.tolist()
    assert after.velocities.shape == state.velocities.shape
    assert after.velocities.device.type == "cuda"
    for tensor in (after.velocities, after.heat, after.work, after.batch.cell):
        assert tensor.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langevin", "triclinic"])
def test_a_step_compiles_to_one_graph(name):
    """Static shapes and no way back to Python; traced, and run as it was traced."""
    state = started()
    compiled = torch.compile(STEPS[name], backend="aot_eager", fullgraph=True)
    found, expected = flatten(compiled(state, Free())), flatten(STEPS[name](state, Free()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_cuda_does_not_wait(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    state = to_device(started(), "cuda")
    model = Free(device=torch.device("cuda"))
    state = STEPS[name](state, model)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            state = STEPS[name](state, model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.steps.tolist() == [4] * 5
