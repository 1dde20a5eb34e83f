"""What a training run is asked to do: frozen dataclasses <- TOML <- key=value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpa4sim.errors import ConfigError
from dpa4sim.mapping import from_mapping

WHERE = "The training run"
Term = tuple[float, ...]
"""A loss weight: one number, or two between which it goes as the learning rate falls."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The stores, and how batches are cut from them.

    Args:
        train: store that `dpa4sim data convert` wrote.
        valid: another one; empty sets `valid_fraction` of the training frames aside.
        valid_fraction: share of the training frames, chosen by the seed.
        max_edges: edges in a batch; 0 for no limit.
        max_atoms: atoms in a batch; 0 for no limit.
        batches_per_step: batches whose gradients are summed for one step, over all devices.
        energy_shifts: eV of each species; what is not given is fitted to the training set.
        min_distance: frames with a pair closer than this (Å) are left out.

    With [branches] each of them brings `train`, `valid` and `energy_shifts`.
    """

    train: str = ""
    valid: str = ""
    valid_fraction: float = 0.05
    max_edges: int = 20_000
    max_atoms: int = 0
    batches_per_step: int = 1
    energy_shifts: dict[str, float] = field(default_factory=dict)
    min_distance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A set of labels with energies and a head of its own, beside others on one trunk.

    Args:
        train: store that `dpa4sim data convert` wrote.
        valid: another one; empty sets `data.valid_fraction` of the training frames aside.
        weight: how often a batch is drawn from this branch, against the weights of the others.
        energy_shifts: eV of each species; what is not given is fitted to this training set.
        energy, force, virial: weights of the loss instead of those of [loss]; empty for those.
    """

    train: str
    valid: str = ""
    weight: float = 1.0
    energy_shifts: dict[str, float] = field(default_factory=dict)
    energy: Term = ()
    force: Term = ()
    virial: Term = ()


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What branches have of their own beside their energy shifts; the trunk is always shared.

    Args:
        head: film: one head whose features each branch scales and shifts; concat: one head that
            is told the branch; own: a head for each; shared: one head.
    """

    head: Literal["film", "concat", "own", "shared"] = "film"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The objective.  Eq. 70

    Args:
        form: mae is Eq. 70; mse squares; huber squares within `huber_delta` (eV/atom, eV/Å).
        energy: weight of the energy per atom.
        force: weight of the force residual.
        virial: weight of the virial per atom.
        magnetic_force: weight of the magnetic force residual, of a model with spins only.
        property: form of the loss of a property model, which has this term alone: of each number's
            error (per atom for an extensive property) in units of the labels' spread.
        property_beta: error from which on smooth_mae is linear.
    """

    form: Literal["mae", "mse", "huber"] = "mae"
    energy: Term = (20.0,)
    force: Term = (20.0,)
    virial: Term = (5.0,)
    magnetic_force: Term = (20.0,)
    huber_delta: float = 0.01
    property: Literal["smooth_mae", "mae", "mse"] = "smooth_mae"
    property_beta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """Of models of direct forces (experimental): what is displaced while they learn.

    Args:
        probability: that a batch has displaced atoms.
        atoms: share of its atoms that are.
        std: of each component of their displacements, Å.
        weight: of the residual of displacements in units of `std`, beside loss.force.
    """

    probability: float = 0.5
    atoms: float = 0.5
    std: float = 0.025
    weight: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights move.  Section 4.3

    Args:
        name: hybrid_muon of the paper, or adamw for every tensor.
        lr: largest learning rate.
        weight_decay: decoupled, on matrices only.
        magma: damp Muon where gradient and momentum disagree (Eq. 80-83).
        clip: largest norm of the gradient.
        average: decay of the running mean of the weights, which is what is kept; 0 for none.
    """

    name: Literal["hybrid_muon", "adamw"] = "hybrid_muon"
    lr: float = 6e-4
    weight_decay: float = 1e-3
    magma: bool = True
    clip: float = 5.0
    average: float = 0.999


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps.  Eq. 71-73

    Args:
        name: warm-up, plateau and decay (wsd); a cosine after the warm-up; or a constant.
        warmup_steps: steps of the linear rise.
        start_factor: where the rise starts, as a share of the largest rate.
        decay_fraction: share of the steps that the decay takes (wsd).
        final_lr: rate of the last step.
    """

    name: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = 1000
    start_factor: float = 0.2
    decay_fraction: float = 0.65
    final_lr: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Where to start from, instead of from nothing.

    Args:
        model: released name, model file or DeePMD-kit checkpoint; empty starts from nothing.
            With [model.property_head] its network gets that head, new; with model.force_head
            the heads of direct forces.
        branch: of a multi-task checkpoint.
        freeze: groups of weights that stay, such as "embedding" or "blocks.0".
        refit_shifts: fit the species' energies to what the model leaves of the labels; the biases
            of a property model stay, and the energies of one of direct forces.
        lora_rank: train low-rank updates of the matrices instead; 0 trains the weights.
        lora_alpha: their scale is alpha / rank.
    """

    model: str = ""
    branch: str = ""
    freeze: tuple[str, ...] = ()
    refit_shifts: bool = True
    lora_rank: int = 0
    lora_alpha: float = 16.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Length, place and speed.

    Args:
        steps: moves of the weights.
        seed: of first weights and of the order of the frames.
        device: where to compute, such as cuda.
        dtype: of weights and features; energies are summed in float64.
        compile: the SO(2) stacks by TorchInductor; left out: on CUDA only.
        matmul: precision of float32 matrix products (torch.set_float32_matmul_precision).
        autocast: operands of the SO(2) stacks' matrix products in bfloat16, all else in `dtype`.
        recompute: keep no activations of the blocks, compute them again for the backward pass.
        deterministic: sums on CUDA in a fixed order, so that a resumed run is bit for bit equal.
        validate_every: steps between two validations; 0 only at the end.
        checkpoint_every_s: seconds between two checkpoints.
        log_every_s: seconds between two lines.
        max_skipped: steps in a row with a loss that is not finite before the run stops.
    """

    steps: int
    seed: int = 1
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    compile: bool | None = None
    matmul: Literal["highest", "high", "medium"] = "highest"
    autocast: bool = False
    recompute: bool = False
    deterministic: bool = False
    validate_every: int = 1000
    checkpoint_every_s: float = 300.0
    log_every_s: float = 5.0
    max_skipped: int = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training run.

    Args:
        model: keys of DPA4Config, or `size` ("neo", "air", "plus", "pro") and what differs from
            it; `species` may be left out: then they are those of the training set.
        branches: several sets of labels by name, instead of `data.train`.
    """

    run: Run
    data: Data = field(default_factory=Data)
    model: dict[str, Any] = field(default_factory=dict)
    loss: Loss = field(default_factory=Loss)
    denoise: Denoise = field(default_factory=Denoise)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    finetune: Finetune = field(default_factory=Finetune)
    branches: dict[str, Branch] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        if self.branches:
            from dpa4sim.train.branches import check_branches

            check_branches(self)
        elif not self.data.train:
            raise ConfigError(
                f"{WHERE} does not say 'data.train', the store to learn from. For several sets of "
                "labels give a table [branches.NAME] for each instead."
            )
        for key, low, high in RANGES:
            table, name = key.split(".")
            value = getattr(getattr(self, table), name)
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:
                    bound = f"from {low:g} to {high:g}" if high < BIG else f"at least {low:g}"
                    raise ConfigError(f"{key} = {number:g}; it must be {bound}.")
        for name in ("energy", "force", "virial", "magnetic_force"):
            if len(getattr(self.loss, name)) not in (1, 2):
                raise ConfigError(f"loss.{name} takes one weight, or two: at first and at last.")
        if not self.data.max_edges and not self.data.max_atoms:
            raise ConfigError("Set data.max_edges or data.max_atoms: one must limit a batch.")
        if self.schedule.warmup_steps >= self.run.steps:
            raise ConfigError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps} is not below run.steps = "
                f"{self.run.steps}."
            )
        if self.finetune.model and set(self.model) - {"property_head", "force_head"}:
            raise ConfigError(
                "[model] and finetune.model are both given. The model that training starts from "
                "brings its own options: remove [model]."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and TOML have them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


BIG = 1e300
RANGES = (
    ("run.steps", 1, BIG),
    ("run.seed", 0, BIG),
    ("run.validate_every", 0, BIG),
    ("run.checkpoint_every_s", 0, BIG),
    ("run.log_every_s", 0, BIG),
    ("run.max_skipped", 1, BIG),
    ("data.valid_fraction", 0, 0.9),
    ("data.max_edges", 0, BIG),
    ("data.max_atoms", 0, BIG),
    ("data.batches_per_step", 1, BIG),
    ("data.min_distance", 0, BIG),
    ("loss.energy", 0, BIG),
    ("loss.force", 0, BIG),
    ("loss.virial", 0, BIG),
    ("loss.magnetic_force", 0, BIG),
    ("loss.huber_delta", 1e-12, BIG),
    ("loss.property_beta", 1e-12, BIG),
    ("denoise.probability", 0, 1),
    ("denoise.atoms", 0, 1),
    ("denoise.std", 1e-12, BIG),
    ("denoise.weight", 0, BIG),
    ("optimizer.lr", 0, BIG),
    ("optimizer.weight_decay", 0, BIG),
    ("optimizer.clip", 1e-12, BIG),
    ("optimizer.average", 0, 0.999999),
    ("schedule.warmup_steps", 0, BIG),
    ("schedule.start_factor", 0, 1),
    ("schedule.decay_fraction", 0, 1),
    ("schedule.final_lr", 0, BIG),
    ("finetune.lora_rank", 0, BIG),
    ("finetune.lora_alpha", 0, BIG),
)
"""Key, least and largest value."""


def read_settings(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Settings:
    """Settings from a TOML file or from plain values, then what `overrides` change.

    Args:
        source: in a file, `data.train` and `data.valid` are relative to the file's folder.
        overrides: "table.key=value", the value as TOML writes it; quotes of a word may be left
            out; paths in them are relative to where the program runs.

    Raises:
        ConfigError: no such file, broken TOML, an unknown key or a value that cannot be used.
    """
    if isinstance(source, Mapping):
        where, given = WHERE, source
    else:
        where, given = str(source), _read_toml(Path(source))
    values = {key: dict(v) if isinstance(v, Mapping) else v for key, v in given.items()}
    for text in overrides:
        _override(values, text)
    named = values.get("branches", {})
    if isinstance(named, dict):
        named = values["branches"] = {
            name: dict(table) if isinstance(table, Mapping) else table
            for name, table in named.items()
        }
    for weights in (values.get("loss", {}), *(named.values() if isinstance(named, dict) else ())):
        for key in ("energy", "force", "virial", "magnetic_force"):
            if isinstance(weights, dict) and isinstance(weights.get(key), (int, float)):
                weights[key] = [weights[key]]
    return from_mapping(Settings, values, where)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no {path}. `dpa4sim train --template > {path}` writes one to begin with."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    branches = values.get("branches")
    tables = branches.values() if isinstance(branches, dict) else ()
    for data in (values.get("data"), *tables):
        for key in ("train", "valid"):
            if isinstance(data, dict) and isinstance(data.get(key), str) and data[key]:
                data[key] = str(path.parent / data[key])
    return values


def _override(values: dict[str, Any], text: str) -> None:
    key, sign, word = text.partition("=")
    *tables, name = key.strip().split(".")
    if not (sign and tables and name):
        raise ConfigError(f"'{text}' is not an override. Write it as optimizer.lr=3e-4.")
    inner: Any = values
    for table in tables:
        inner = inner.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{text}': '{table}' is not a table of the settings.")
    try:
        inner[name] = tomllib.loads(f"value = {word.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        inner[name] = word.strip()
