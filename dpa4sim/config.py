"""DPA4Config: the options of the network under the field's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from dpa4sim.errors import ConfigError
from dpa4sim.mapping import from_mapping

PROPERTY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names that are also names of files and of HDF5 datasets."""

LARGEST_DEGREE = 21
"""Largest degree l whose products a Lebedev rule integrates exactly."""

NormPlace = Literal["before_convolution", "after_convolution", "before_ffn", "after_ffn"]
ForceHead = Literal["none", "direct", "mirrored"]
GridOperation = Literal["product", "mlp", "branch"]


@dataclass(frozen=True, kw_only=True)
class PropertyConfig:
    """What a model predicts instead of an energy: an invariant property of the structure.

    Args:
        name: of the label: NAME.npy, or the key in a frame's info; empty for an energy model.
        task_dim: numbers that the property has.
        intensive: the property is the mean over the atoms' shares; else their sum.
        by_species: the labels' statistics give each species a bias of its own.
        hidden: hidden widths of the head; 0 chooses from C.
        activation: of the hidden layers.
        step_scales: learnable scales of the hidden layers that have a skip connection.
    """

    name: str = ""
    task_dim: int = 1
    intensive: bool = False
    by_species: bool = True
    hidden: tuple[int, ...] = (120, 120, 120)
    activation: Literal["tanh", "silu", "gelu", "relu", "sigmoid", "softplus", "linear"] = "tanh"
    step_scales: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.name and not PROPERTY_NAME.fullmatch(self.name):
            raise ConfigError(
                f"property_head.name = {self.name!r} cannot name a label. Use letters, digits, "
                "'_', '-' and '.'."
            )
        if self.task_dim < 1:
            raise ConfigError(f"property_head.task_dim = {self.task_dim}; it must be at least 1.")
        if any(width < 0 for width in self.hidden):
            raise ConfigError(f"property_head.hidden = {self.hidden}; no width may be negative.")


@dataclass(frozen=True, kw_only=True)
class SpinConfig:
    """How magnetic moments enter an energy.  The paper is silent; the reference has two schemes.

    Args:
        scheme: "virtual" puts a second atom beside each magnetic one, displaced along its moment;
            "native" makes the moments features of the atoms (l = 0 and l = 1).
        magnetic: species that carry a moment; those of other species are not looked at.
        virtual_scale: displacement in Å per Bohr magneton, of all magnetic species or of each.
    """

    scheme: Literal["virtual", "native"] = "virtual"
    magnetic: tuple[str, ...] = ()
    virtual_scale: tuple[float, ...] = (0.314,)

    def __post_init__(self) -> None:
        for name in ("magnetic", "virtual_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(set(self.magnetic)) != len(self.magnetic):
            raise ConfigError(f"spin.magnetic = {self.magnetic}; name each species once.")
        if len(self.virtual_scale) not in (1, len(self.magnetic)):
            raise ConfigError(
                f"spin.virtual_scale has {len(self.virtual_scale)} numbers. Give one, or one for "
                f"each of the {len(self.magnetic)} magnetic species."
            )
        if not all(0 < abs(scale) < inf for scale in self.virtual_scale):
            raise ConfigError(
                f"spin.virtual_scale = {self.virtual_scale}; each must be finite and not zero, in "
                "Å per Bohr magneton."
            )


@dataclass(frozen=True, kw_only=True)
class DPA4Config:
    """Every choice that fixes the network's function.  Paper section 4.2; names of Table S-17.

    Args:
        species: chemical symbols; the order is the order of the rows of the species tables.
        cutoff: radius of the neighbour graph in Å.
        channels: feature dimension C.
        n_blocks: interaction layers.
        max_degree: L, largest degree l of the atom features.
        extra_degree: degrees above L that the embedding and feed-forward units carry besides.
        max_order: M, largest order |m| kept in the edge frame.
        degree_schedule: L of each block, not increasing; overrides `max_degree` and `n_blocks`.
        order_schedule: M of each block; overrides `max_order`.
        so2_layers: linear layers of the SO(2) stack.
        so2_norm: a norm before each SO(2) layer but the last.
        layer_scale: learnable scales on the SO(2) layers and the feed-forward output (Eq. 21).
        n_focus: focuses F of the convolution.
        focus_channels: channels of one focus; 0 means C.
        n_heads: attention heads; 0 sums messages by the envelope instead.
        radial_basis: radial functions (Eq. 8).
        n_radial: number of radial functions.
        radial_hidden: hidden widths of the radial network; 0 means C.
        envelope_exponents: p of the C3 envelope (Eq. 7) of the radial basis and of the edge weight.
        edge_norm: norms in the radial network, on the seed and on the focus competition.
        edge_product: how an edge's radial features act on its message (Eq. 18).
        product_rank: rank of the edge-node product; 0 gives every channel its own kernel.
        environment_seed: seed features from the neighbourhood (section 4.2.2).
        norm_places: where blocks normalise.
        ffn_blocks: feed-forward units in a block.
        ffn_channels: hidden width; 0 chooses it from C.
        ffn_grid: sphere or rotation-group grid of the feed-forward product; "none" gates instead.
        ffn_grid_operation: what happens on that grid.
        ffn_grid_branches: branches of the operation "branch".
        message_grid: product of the aggregated message with the atom features on the SO(3) grid.
        message_grid_operation: what happens on that grid.
        message_grid_branches: branches of the operation "branch".
        grid_order: largest frame order k of SO(3) grids.
        gated_linear: gated linear units where no grid is used.
        readout: degree-0 unit, or a full SO(3)-grid unit with operation "product" or "mlp".
        readout_layers: read-out units in sequence.
        energy_hidden: hidden widths of the energy head; 0 chooses from C.
        bias: biases in the linear layers of the blocks.
        charge_spin: condition on the total charge and spin of the system.
        default_charge_spin: values where a batch carries none.
        excluded_pairs: pairs of species that share no edge.
        zbl_inner: start of the bridging window in Å; None switches the ZBL term off.
        zbl_outer: end of the bridging window in Å.
        descriptor_version: behaviour of the reference implementation that made the weights.
        epsilon: guard of norms and lengths.
        property_head: what to predict instead of an energy.
        force_head: "direct" reads forces from the features instead of from the energy's slope
            (experimental: they are not conservative); "mirrored" is the same with the y axis of
            DeePMD-kit 3.2's head, for its checkpoints only, see `model.dens`.
        spin: how magnetic moments enter, for models that have them.
    """

    species: tuple[str, ...]
    cutoff: float = 6.0
    channels: int = 64
    n_blocks: int = 3
    max_degree: int = 3
    extra_degree: int = 0
    max_order: int = 1
    degree_schedule: tuple[int, ...] = ()
    order_schedule: tuple[int, ...] = ()
    so2_layers: int = 4
    so2_norm: bool = False
    layer_scale: bool = False
    n_focus: int = 1
    focus_channels: int = 0
    n_heads: int = 1
    radial_basis: Literal["bessel", "gaussian"] = "bessel"
    n_radial: int = 16
    radial_hidden: tuple[int, ...] = (0,)
    envelope_exponents: tuple[int, ...] = (7, 5)
    edge_norm: bool = True
    edge_product: Literal["none", "degree", "degree_channel"] = "degree_channel"
    product_rank: int = 1
    environment_seed: bool = True
    norm_places: tuple[NormPlace, ...] = ("after_convolution", "before_ffn")
    ffn_blocks: int = 1
    ffn_channels: int = 0
    ffn_grid: Literal["none", "s2", "so3"] = "s2"
    ffn_grid_operation: GridOperation = "product"
    ffn_grid_branches: int = 0
    message_grid: bool = False
    message_grid_operation: GridOperation = "product"
    message_grid_branches: int = 0
    grid_order: int = 1
    gated_linear: bool = True
    readout: Literal["scalar", "product", "mlp"] = "scalar"
    readout_layers: int = 1
    energy_hidden: tuple[int, ...] = (0,)
    bias: bool = False
    charge_spin: bool = False
    default_charge_spin: tuple[float, ...] = ()
    excluded_pairs: tuple[tuple[str, ...], ...] = ()
    zbl_inner: float | None = None
    zbl_outer: float | None = None
    descriptor_version: Literal["1.0", "1.1", "1.2"] = "1.2"
    epsilon: float = 1e-7
    property_head: PropertyConfig = field(default_factory=PropertyConfig)
    force_head: ForceHead = "none"
    spin: SpinConfig = field(default_factory=SpinConfig)

    def __post_init__(self) -> None:
        for name in ("degree_schedule", "order_schedule", "radial_hidden", "energy_hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_species()
        self._check_shape()
        self._check_zbl()
        self._check_spin()
        if self.property_head.name and self.zbl_inner is not None:
            raise ConfigError(
                f"A model of the property '{self.property_head.name}' has no ZBL energy. Leave out "
                "zbl_inner and zbl_outer."
            )
        self._check_force_head()

    @property
    def degrees(self) -> tuple[int, ...]:
        """L of each block."""
        return self.degree_schedule or (self.max_degree,) * self.n_blocks

    @property
    def orders(self) -> tuple[int, ...]:
        """M of each block."""
        if self.order_schedule:
            return self.order_schedule
        return tuple(min(self.max_order, degree) for degree in self.degrees)

    @property
    def top_degree(self) -> int:
        """L of the first block, which the embedding fills."""
        return self.degrees[0] if self.degrees else self.max_degree

    @property
    def focus_width(self) -> int:
        """Channels of one focus."""
        return self.focus_channels or self.channels

    @property
    def hidden_channels(self) -> int:
        """Hidden width of the feed-forward units: given, or chosen by `auto_hidden`."""
        if self.ffn_channels:
            return self.ffn_channels
        return self.auto_hidden(gated=self.gated_linear or self.ffn_grid != "none")

    def auto_hidden(self, gated: bool) -> int:
        """8/3 C for gated units, 4 C for others, rounded up to a multiple of 32."""
        target = 8 * self.channels / 3 if gated else 4 * self.channels
        return 32 * int(-(-target // 32))

    @property
    def has_spins(self) -> bool:
        """Whether the energy depends on magnetic moments."""
        return bool(self.spin.magnetic)

    @property
    def has_virtual_atoms(self) -> bool:
        """Whether each species has a second row in the species tables, for its virtual atoms."""
        return self.has_spins and self.spin.scheme == "virtual"

    @property
    def n_kinds(self) -> int:
        """Rows of the species tables: the species, then the virtual atoms of each."""
        return len(self.species) * (2 if self.has_virtual_atoms else 1)

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Nuclear charge of each species."""
        from ase.data import atomic_numbers

        return tuple(atomic_numbers[symbol] for symbol in self.species)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for TOML and the header of a model file."""
        values = asdict(self)
        if not self.property_head.name:
            del values["property_head"]
        if self.force_head == "none":
            del values["force_head"]
        if not self.has_spins:
            del values["spin"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DPA4Config:
        """Checked config from plain values.

        Raises:
            ConfigError: an unknown key (with the nearest valid one), a missing or a wrong value.
        """
        if "species" not in values:
            raise ConfigError("The model config has no 'species'. Give the chemical symbols.")
        return from_mapping(cls, values, "The model config")

    @classmethod
    def named(cls, size: str, species: tuple[str, ...]) -> DPA4Config:
        """One of the paper's sizes (Table S-17): neo, air, plus or pro.

        Raises:
            ConfigError: another name.
        """
        if size not in NAMED_SIZES:
            raise ConfigError(f"There is no size '{size}'. Choose one of {', '.join(NAMED_SIZES)}.")
        return cls(species=species, layer_scale=True, **NAMED_SIZES[size])

    def _check_species(self) -> None:
        from ase.data import atomic_numbers

        strangers = [symbol for symbol in self.species if atomic_numbers.get(symbol, 0) == 0]
        if strangers:
            raise ConfigError(
                f"species = {strangers} are not chemical symbols, such as 'Fe' or 'O'."
            )
        if not self.species or len(set(self.species)) != len(self.species):
            raise ConfigError("species must name at least one element, each once.")
        for pair in self.excluded_pairs:
            if len(pair) != 2 or not set(pair) <= set(self.species):
                raise ConfigError(f"excluded_pairs has {pair}; each must be two of the species.")

    def _check_shape(self) -> None:
        positive = ("channels", "so2_layers", "n_focus", "n_radial", "ffn_blocks", "readout_layers")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must be at least 1.")
        counts = ["n_blocks", "max_degree", "extra_degree", "focus_channels", "product_rank"]
        counts += ["ffn_channels", "grid_order", "n_heads"]
        for name in counts:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must not be negative.")
        for name in ("radial_hidden", "energy_hidden"):
            if any(width < 0 for width in getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)}; no width may be negative.")
        if self.top_degree + self.extra_degree > LARGEST_DEGREE:
            raise ConfigError(f"Degrees above {LARGEST_DEGREE} have no quadrature rule.")
        if not 0 < self.cutoff < inf:
            raise ConfigError(f"cutoff = {self.cutoff}; it must be a positive length in Å.")
        if not 0 < self.epsilon < 1:
            raise ConfigError(f"epsilon = {self.epsilon}; it must be small and positive.")
        if len(self.envelope_exponents) != 2 or min(self.envelope_exponents) < 1:
            raise ConfigError(
                f"envelope_exponents = {self.envelope_exponents}; give two, each at least 1."
            )
        if len(self.default_charge_spin) not in (0, 2):
            raise ConfigError("default_charge_spin takes a charge and a spin, or nothing.")
        if any(low < high for low, high in zip(self.degrees, self.degrees[1:], strict=False)):
            raise ConfigError(f"degree_schedule = {self.degrees} must not increase.")
        if len(self.orders) != len(self.degrees) or any(
            not 0 <= order <= degree
            for order, degree in zip(self.orders, self.degrees, strict=False)
        ):
            raise ConfigError(
                f"orders {self.orders} must give each block an M from 0 to its L {self.degrees}."
            )
        if self.n_heads and self.focus_width % self.n_heads:
            raise ConfigError(
                f"n_heads = {self.n_heads} must divide the {self.focus_width} channels of a focus."
            )
        for place in ("ffn", "message"):
            operation = getattr(self, f"{place}_grid_operation")
            if operation == "branch" and getattr(self, f"{place}_grid_branches") < 1:
                raise ConfigError(
                    f"{place}_grid_operation = 'branch' needs {place}_grid_branches >= 1."
                )

    def _check_force_head(self) -> None:
        if self.force_head == "none":
            return
        if self.property_head.name:
            raise ConfigError(
                f"A model of the property '{self.property_head.name}' has no forces. Leave out "
                "force_head."
            )
        if self.has_spins:
            raise ConfigError("Direct forces have no spins. Leave out spin, or force_head.")
        if self.zbl_inner is not None:
            raise ConfigError(
                "Direct forces have no ZBL term. Leave out zbl_inner and zbl_outer, or force_head."
            )
        if not self.degrees or self.degrees[-1] + self.extra_degree < 1:
            raise ConfigError(
                f"force_head = '{self.force_head}' reads vectors from features of degree 1, and "
                "the last block has degree 0 only. Give max_degree >= 1."
            )

    def _check_zbl(self) -> None:
        if (self.zbl_inner is None) != (self.zbl_outer is None):
            raise ConfigError("Give both zbl_inner and zbl_outer, or neither.")
        if self.zbl_inner is None or self.zbl_outer is None:
            return
        if not 0 < self.zbl_inner < self.zbl_outer <= self.cutoff:
            raise ConfigError(
                f"The bridging window [{self.zbl_inner}, {self.zbl_outer}] Å must satisfy "
                f"0 < zbl_inner < zbl_outer <= cutoff = {self.cutoff} Å."
            )

    def _check_spin(self) -> None:
        strangers = [name for name in self.spin.magnetic if name not in self.species]
        if strangers:
            raise ConfigError(
                f"spin.magnetic names {', '.join(strangers)}, which the model does not know. Its "
                f"species: {', '.join(self.species)}."
            )
        if self.has_spins and self.property_head.name:
            raise ConfigError(
                f"A model of the property '{self.property_head.name}' has no spins. Leave out "
                "spin.magnetic."
            )
        native = self.has_spins and not self.has_virtual_atoms
        if native and self.top_degree + self.extra_degree < 1:
            raise ConfigError("spin.scheme = 'native' needs features of degree 1: max_degree >= 1.")


NAMED_SIZES: dict[str, dict[str, Any]] = {
    "neo": {"n_blocks": 2, "max_degree": 3, "so2_layers": 3},
    "air": {"n_blocks": 3, "max_degree": 3, "so2_layers": 4},
    "plus": {"n_blocks": 4, "max_degree": 4, "so2_layers": 4},
    "pro": {"n_blocks": 6, "max_degree": 5, "so2_layers": 4, "n_focus": 2, "product_rank": 2},
}
"""Table S-17.  The paper's parameter counts come out with layer scale on and 118 species."""
