"""Model files: a safetensors file of weights whose header is the config, the units and the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model import DPA4

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FORMAT = "dpa4sim-1"
"""Written into every model file; a file with another format is refused."""

ENSEMBLE_FORMAT = "dpa4sim-ensemble-1"
"""Written into files of several members, see `dpa4sim.ensemble`."""

BRANCHES_FORMAT = "dpa4sim-branches-1"
"""Written into files of several branches, see `dpa4sim.branches`."""


def read_network(
    model: str | Path, branch: str | None = None, dtype: str = "float32"
) -> tuple[DPA4, dict[str, Any]]:
    """Network and card of any model, of energies or of a property; arguments of `load`.

    Raises:
        ModelError: no such model, a damaged or foreign file, or an unsupported option.
    """
    path = released().get(str(model), Path(model))
    if not path.is_file():
        names = ", ".join(released()) or "none yet"
        raise ModelError(
            f"There is no model '{model}': no such file, and the released names are {names}."
        )
    if path.suffix == ".safetensors":
        config, state, card = read_safetensors(path, branch)
    else:
        from dpa4sim.adapters.deepmd import read_deepmd

        config, state = read_deepmd(path, branch)
        card = {"origin": f"DeePMD-kit checkpoint {path.name}"}
    network = DPA4(config, dtype=network_dtype(dtype))
    fill(network, state, str(path))
    return network, card


def released() -> dict[str, Path]:
    """Models inside the package, by name."""
    folder = Path(__file__).parent / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def write_safetensors(
    model: DPA4, card: Mapping[str, Any], path: Path, units: Mapping[str, str]
) -> None:
    """A model file, whole or not at all."""
    header = {"format": FORMAT, "config": model.config.to_dict(), "units": units, "card": card}
    partial = path.with_name(f".{path.name}.partial")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, metadata={"dpa4sim": json.dumps(header)})  # one key: same bytes
    partial.replace(path)


def read_safetensors(
    path: Path, branch: str | None = None
) -> tuple[DPA4Config, dict[str, Tensor], dict[str, Any]]:
    """Config, state and card of a model file.

    Raises:
        ModelError: damaged, of another program, of another format version, or a branch that it
            does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a readable safetensors file (damaged or truncated)."
        ) from error
    if "dpa4sim" not in metadata:
        raise ModelError(f"{path} is not a dpa4sim model: its header has no entry 'dpa4sim'.")
    try:
        header = json.loads(metadata["dpa4sim"])
        found = header.get("format")
        if found == ENSEMBLE_FORMAT:
            raise ModelError(
                f"{path} holds {len(header['members'])} members, and this needs one network. Save "
                f"one: dpa4sim.load({str(path)!r}).members[0].save('member.safetensors')."
            )
        if found == BRANCHES_FORMAT:
            from dpa4sim.branches import select_branch

            return select_branch(header, state, branch, path)
        if branch is not None:
            raise ModelError(f"{path} holds one network only; leave out branch='{branch}'.")
        if found != FORMAT:
            raise ModelError(f"{path} has the format {found!r}; this version reads '{FORMAT}'.")
        config, card = DPA4Config.from_dict(header["config"]), header.get("card", {})
    except ModelError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} has an unusable header: {error}") from error
    return config, state, card


def fill(network: DPA4, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state into a network.

    Raises:
        ModelError: a tensor is missing, unknown, or of another shape.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            raise ModelError(f"{source} lacks the tensor '{name}' that its config calls for.")
        if name not in wanted:
            raise ModelError(
                f"{source} has the tensor '{name}', which its config does not call for."
            )
        if state[name].shape != wanted[name].shape:
            raise ModelError(
                f"{source}: '{name}' has shape {tuple(state[name].shape)}, "
                f"its config calls for {tuple(wanted[name].shape)}."
            )
    network.load_state_dict(dict(state))


def network_dtype(name: str) -> torch.dtype:
    """The precision of this name.

    Raises:
        ConfigError: another name.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}. Choose 'float32' or 'float64'.")
    return DTYPES[name]
