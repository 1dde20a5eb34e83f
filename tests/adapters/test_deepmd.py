"""DeePMD-kit checkpoints: written and read back, and everything a foreign file can be.

That the numbers are DeePMD-kit's is shown in tests/parity.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import BASE, FILE_SETS, crystal, largest, random_model
from torch import Tensor

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError
from dpa4sim.model import DPA4
from dpa4sim.potential import load

LORA_TOLERANCE = 1e-14
"""One product of two small matrices, added in another order."""

Content = dict[str, Any]
DESCRIPTOR = "model.Default.atomic_model.descriptor."


def written(tmp_path: Path, config: DPA4Config = BASE) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of a random model, and its state."""
    state = random_model(config).state_dict()
    write_deepmd(config, state, tmp_path / "model.pt")
    return tmp_path / "model.pt", state


def edited(tmp_path: Path, edit: Callable[[Content], Any], config: DPA4Config = BASE) -> Path:
    """A checkpoint whose content was changed by `edit`."""
    path, _ = written(tmp_path, config)
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


def params(content: Content) -> Content:
    return content["model"]["_extra_state"]["model_params"]


def complaint(path: Path, branch: str | None = None) -> str:
    """The message of the refusal: about this file, one line, three sentences at most."""
    with pytest.raises(ModelError) as caught:
        read_deepmd(path, branch)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.replace(str(path), "").count(". ") <= 2
    return message


def spelled_out(config: DPA4Config) -> DPA4Config:
    """Schedules decide, so what they override is set to match."""
    if config.degree_schedule:
        degrees = config.degree_schedule
        config = replace(config, max_degree=degrees[0], n_blocks=len(degrees))
    if config.order_schedule:
        config = replace(config, max_order=max(config.order_schedule))
    return config


def assert_equal_states(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
    assert [name for name in got if got[name].dtype != expected[name].dtype] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FILE_SETS)
def test_written_and_read_back(name, dtype, tmp_path):
    config = FILE_SETS[name]
    state = random_model(config).to(dtype).state_dict()
    write_deepmd(config, state, tmp_path / "model.pt")
    got_config, got = read_deepmd(tmp_path / "model.pt")
    assert got_config == spelled_out(config)
    assert_equal_states(got, dict(state))


def test_branches_that_are_not_used_are_not_written(tmp_path):
    """DeePMD-kit reads grid_branch > 0 as the operation "branch", which wins over grid_mlp."""
    config = replace(BASE, ffn_grid_operation="mlp", ffn_grid_branches=2)
    path, _ = written(tmp_path, config)
    assert read_deepmd(path)[0].ffn_grid_operation == "mlp"


def test_loaded_checkpoint_predicts(tmp_path):
    path, state = written(tmp_path)
    potential = load(path, dtype="float64")
    model = DPA4(BASE, dtype=torch.float64)
    model.load_state_dict(state)
    assert potential.card == {"origin": "DeePMD-kit checkpoint model.pt"}
    assert bool(potential(crystal()).energy.isfinite())
    assert_equal_states(dict(potential.model.state_dict()), dict(model.state_dict()))


def test_state_that_lacks_a_tensor_is_not_written(tmp_path):
    state = random_model(BASE).state_dict()
    del state["head.out"]
    with pytest.raises(ModelError, match=r"has no tensor 'head\.out'"):
        write_deepmd(BASE, state, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_shifts_of_both_places_add_up(tmp_path):
    """out_bias of the atomic model, and bias_atom_e of the fitting network."""
    extra = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)

    def edit(content: Content) -> None:
        content["model"]["model.Default.atomic_model.fitting_net.bias_atom_e"] = extra

    _, state = written(tmp_path)
    _, got = read_deepmd(edited(tmp_path, edit))
    assert torch.equal(got["energy_shift"], state["energy_shift"] + extra[:, 0])


# ----------------------------------------------------------------------------- multi-task files


def multi_task(tmp_path: Path, branches: tuple[str, ...] = ("OMat24", "OMol.25")) -> Path:
    """One copy of the keys per branch; each branch has energies of its own."""

    def edit(content: Content) -> None:
        model = content["model"]
        extra = model.pop("_extra_state")
        single = {key.removeprefix("model.Default."): value for key, value in model.items()}
        content["model"] = {"_extra_state": extra}
        for shift, branch in enumerate(branches):
            for key, value in single.items():
                moved = value + shift if key.endswith("out_bias") else value
                content["model"][f"model.{branch}.{key}"] = moved
        tables = {branch: dict(extra["model_params"]) for branch in branches}
        extra["model_params"] = {"model_dict": tables, "shared_dict": {}}

    return edited(tmp_path, edit)


def test_branch_is_chosen(tmp_path):
    path = multi_task(tmp_path)
    states = {branch: read_deepmd(path, branch)[1] for branch in ("OMat24", "OMol.25")}
    difference = states["OMol.25"]["energy_shift"] - states["OMat24"]["energy_shift"]
    assert largest(difference - 1) < 1e-15
    assert load(path, branch="OMol.25").config == BASE


def test_branch_must_be_named(tmp_path):
    message = complaint(multi_task(tmp_path))
    assert "has the branches OMat24, OMol.25. Choose one: branch='OMat24'" in message


def test_branch_that_is_not_there(tmp_path):
    message = complaint(multi_task(tmp_path), "SPICE")
    assert "has no branch 'SPICE'. It has OMat24, OMol.25" in message


def test_branch_of_a_single_task_file(tmp_path):
    path, _ = written(tmp_path)
    assert "has one branch only; leave out branch='SPICE'" in complaint(path, "SPICE")
    assert read_deepmd(path, "Default")[0] == BASE


def test_branch_without_weights(tmp_path):
    path = multi_task(tmp_path)
    content = torch.load(path, weights_only=True)
    for key in [key for key in content["model"] if key.startswith("model.OMat24.")]:
        del content["model"][key]
    torch.save(content, path)
    assert "has no weights under 'model.OMat24.'" in complaint(path, "OMat24")


# ----------------------------------------------------------------------------- LoRA


def test_lora_is_folded(tmp_path):
    """dW = scaling (B A)^T, per degree, for m = 0, and for each order."""
    config = replace(BASE, max_order=2, n_focus=2)
    conv, ffn = f"{DESCRIPTOR}blocks.0.so2_conv.", f"{DESCRIPTOR}blocks.1.ffns.0.so3_linear_1"
    so2, stack = f"{conv}so2_linears.0", "blocks.0.convolution.stack."
    layers = [
        (ffn, "weight", "A_by_l", "B_by_l", "blocks.1.feed_forward.0.widen.weight"),
        (so2, "weight_m0", "A_m0", "B_m0", f"{stack}zonal.0"),
        (so2, "weight_m.0", "A_m.0", "B_m.0", f"{stack}pairs.0.0"),
        (so2, "weight_m.1", "A_m.1", "B_m.1", f"{stack}pairs.0.1"),
    ]
    generator = torch.Generator().manual_seed(0)
    updates: dict[str, Tensor] = {}

    def edit(content: Content) -> None:
        for stem, weight, a, b, ours in layers:
            *degrees, n_in, n_out = content["model"][f"{stem}.{weight}"].shape
            down = torch.randn(*degrees, 3, n_in, generator=generator).double()
            up = torch.randn(*degrees, n_out, 3, generator=generator).double()
            content["model"] |= {f"{stem}.{a}": down, f"{stem}.{b}": up}
            content["model"][f"{stem}.lora_scaling"] = torch.tensor(0.25, dtype=torch.float64)
            updates[ours] = 0.25 * torch.einsum("...ri,...or->...io", down, up)
        params(content)["lora"] = {"rank": 3, "alpha": 0.75}

    _, plain = written(tmp_path, config)
    got_config, got = read_deepmd(edited(tmp_path, edit, config))
    assert got_config == config
    assert got.keys() == plain.keys()
    for name in plain:
        moved = plain[name] + updates.get(name, torch.zeros(()).double())
        assert largest(got[name] - moved) < 100 * LORA_TOLERANCE, name
    assert len(updates) == len(layers)


# ----------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("edge_cartesian", True),
        ("node_cartesian", "default:2"),
        ("so2_attn_res", "independent"),
        ("node_wise_so3", True),
        ("message_node_s2", True),
        ("atten_f_mix", True),
        ("lebedev_quadrature", False),
        ("activation_function", "gelu"),
        ("use_spin", [True]),
        ("inner_clamp_r_inner", 0.5),
        ("a_new_option", 3),
    ],
)
def test_unknown_option_is_refused_by_name(option, value, tmp_path):
    def edit(content: Content) -> None:
        params(content)["descriptor"][option] = value

    message = complaint(edited(tmp_path, edit))
    assert f"descriptor.{option}" in message
    assert repr(value) in message


def test_gate_on_the_edges_is_refused(tmp_path):
    def edit(content: Content) -> None:
        params(content)["descriptor"]["s2_activation"] = [True, True]

    assert "descriptor.s2_activation[0] = True" in complaint(edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("option", "value"),
    [("numb_fparam", 2), ("numb_aparam", 1), ("activation_function", "tanh"), ("new", 1)],
)
def test_fitting_option_is_refused_by_name(option, value, tmp_path):
    def edit(content: Content) -> None:
        params(content)["fitting_net"][option] = value

    assert f"fitting_net.{option}" in complaint(edited(tmp_path, edit))


def test_model_option_is_refused_by_name(tmp_path):
    def edit(content: Content) -> None:
        params(content)["atom_exclude_types"] = [1]

    assert "'atom_exclude_types' = [1]" in complaint(edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("section", "kind"), [(None, "dpa3"), ("descriptor", "se_e2_a"), ("fitting_net", "dos")]
)
def test_other_kinds_of_model(section, kind, tmp_path):
    def edit(content: Content) -> None:
        table = params(content)[section] if section else params(content)
        table["type"] = kind

    message = complaint(edited(tmp_path, edit))
    assert f"type = '{kind}'" in message
    assert "dpa4sim reads DPA4 energy models" in message


def test_no_elements(tmp_path):
    assert "has no 'type_map'" in complaint(edited(tmp_path, lambda c: params(c).pop("type_map")))


def test_value_that_no_network_has(tmp_path):
    def edit(content: Content) -> None:
        params(content)["descriptor"]["channels"] = 0

    assert "channels = 0; it must be at least 1" in complaint(edited(tmp_path, edit))


def test_defaults_fill_what_is_left_out(tmp_path):
    """A file of DeePMD-kit's defaults names nothing but the elements."""
    config = DPA4Config(species=("Si", "C"), channels=64)

    def edit(content: Content) -> None:
        content["model"]["_extra_state"]["model_params"] = {
            "type": "SeZM",
            "type_map": ["Si", "C"],
            "descriptor": {"type": "sezm"},
            "fitting_net": {},
        }

    assert read_deepmd(edited(tmp_path, edit, config))[0] == config


@pytest.mark.parametrize("spelling", ["so2_layers", "mixing_layers"])
def test_both_names_of_the_layers(spelling, tmp_path):
    def edit(content: Content) -> None:
        descriptor = params(content)["descriptor"]
        descriptor[spelling] = descriptor.pop("mixing_layers")

    assert read_deepmd(edited(tmp_path, edit))[0].so2_layers == BASE.so2_layers


# ----------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(None, "1.0"), (1.0, "1.0"), (1.1, "1.1"), (1.2, "1.2"), (float(torch.tensor(1.1)), "1.1")],
)
def test_versions(stored, expected, tmp_path):
    def edit(content: Content) -> None:
        key = f"{DESCRIPTOR}version_tensor"
        content["model"].pop(key)
        if stored is not None:
            content["model"][key] = torch.tensor(stored, dtype=torch.float64)

    assert read_deepmd(edited(tmp_path, edit))[0].descriptor_version == expected


def test_newer_version_is_refused(tmp_path):
    def edit(content: Content) -> None:
        content["model"][f"{DESCRIPTOR}version_tensor"] = torch.tensor(1.3)

    assert "dpa4sim knows 1.0, 1.1 and 1.2" in complaint(edited(tmp_path, edit))


# ----------------------------------------------------------------------------- tensors


def test_unknown_tensor_is_refused(tmp_path):
    def edit(content: Content) -> None:
        content["model"][f"{DESCRIPTOR}blocks.0.so2_conv.new_weight"] = torch.ones(3)

    message = complaint(edited(tmp_path, edit))
    assert "blocks.0.so2_conv.new_weight', which dpa4sim does not know" in message


def test_missing_tensor_is_named(tmp_path):
    key = f"{DESCRIPTOR}blocks.0.so2_conv.pre_focus_mix.weight"
    message = complaint(edited(tmp_path, lambda content: content["model"].pop(key)))
    assert "lacks the tensor 'descriptor.blocks.0.so2_conv.pre_focus_mix.weight'" in message


@pytest.mark.parametrize("key", ["fitting_net.bias_atom_e", "out_bias"])
def test_missing_shift_is_named(key, tmp_path):
    full = f"model.Default.atomic_model.{key}"
    assert key in complaint(edited(tmp_path, lambda content: content["model"].pop(full)))


def test_tensor_of_another_shape_is_named(tmp_path):
    def edit(content: Content) -> None:
        content["model"][f"{DESCRIPTOR}blocks.0.so2_conv.pre_focus_mix.weight"] = torch.ones(1, 2)

    with pytest.raises(ModelError, match=r"mix_in.weight' has shape \(1, 2\)"):
        load(edited(tmp_path, edit))


# ----------------------------------------------------------------------------- foreign files


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "boom")


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_pickle_bomb_is_not_executed(place, tmp_path):
    fuse = tmp_path / "exploded"

    def edit(content: Content) -> None:
        target = content if place == "beside" else params(content)
        target["bomb"] = Bomb(fuse)

    message = complaint(edited(tmp_path, edit))
    assert "could run code; it was not opened" in message
    assert not fuse.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert fuse.exists()  # it was a bomb


def test_bare_pickle_is_not_executed(tmp_path):
    fuse = tmp_path / "exploded"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"model": Bomb(fuse)}))
    complaint(path)
    assert not fuse.exists()


@pytest.mark.parametrize("keep", [0, 10, 5_000, -100])
def test_truncated_file(keep, tmp_path):
    path, _ = written(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a readable PyTorch checkpoint" in complaint(path)


def test_text_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("this is no checkpoint")
    complaint(path)


def test_zip_file(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    assert "is not a readable PyTorch checkpoint" in complaint(path)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.ones(2)},
        {"model": {"weight": torch.ones(2)}},
        {"model": {"_extra_state": {"train_infos": {}}}},
        {"model": [torch.ones(2)]},
        [torch.ones(2)],
        torch.ones(2),
    ],
)
def test_other_torch_files(content, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert "not a DeePMD-kit checkpoint" in complaint(path)


def test_no_file(tmp_path):
    assert "There is no file" in complaint(tmp_path / "nothing.pt")
