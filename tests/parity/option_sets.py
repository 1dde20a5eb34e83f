"""The option sets and structures on which dpa4sim and DeePMD-kit must agree.

Shared by `test_live.py` and by `peer.py`, which runs in DeePMD-kit's own virtual environment, so
this file needs nothing but numpy.  Everything is drawn with fixed seeds: no file, no network.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPE_MAP = ["O", "H", "Cu", "N", "C"]
ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "Cu": 29}
RANDOM_SEED = 20260602
N_RANDOM_SETS = 12

BASE_DESCRIPTOR: dict[str, Any] = {
    "type": "dpa4",
    "rcut": 4.5,
    "sel": 8,  # fewer than the neighbours there are: it must not truncate
    "channels": 8,
    "n_radial": 6,
    "lmax": 2,
    "mmax": 1,
    "n_blocks": 1,
    "mixing_layers": 2,
    "precision": "float64",
    "seed": 1,
}
BASE_FITTING: dict[str, Any] = {
    "type": "dpa4_ener",
    "neuron": [0],
    "precision": "float64",
    "seed": 1,
}
TOLERANCE = 1e-11
"""Two float64 programs that add in different orders; the oracle files show 1e-12."""
PRODUCT_GRID_TOLERANCE = 1e-6
"""DeePMD-kit tabulates its product grid of the sphere in float32; its Lebedev grid is exact."""
ZBL = {"bridging_method": "ZBL", "bridging_r_inner": 0.6, "bridging_r_outer": 1.1}


@dataclass(frozen=True)
class OptionSet:
    """One DeePMD-kit model and what is special about its checkpoint.

    Args:
        model: DeePMD-kit's model section.
        version: `version_tensor` to store; None to delete the key, as in files of paper time.
        charge_spin: give every structure a total charge and spin.
        unlisted: the DeePMD-kit option that design/model.md does not ask for; a loader may refuse
            the checkpoint by this name, else its numbers must agree.
        evaluated: False when the model wants inputs that dpa4sim has no place for; only refusal
            is right then.
        lora: add low-rank adapters to the file, as fine-tuning leaves them.
        branch: put the model under this name into a multi-task file, behind another one.
        normalized: write every option with its default into the file, as `dp train` does.
    """

    name: str
    model: dict[str, Any]
    version: float | None = 1.2
    charge_spin: bool = False
    unlisted: str | None = None
    evaluated: bool = True
    lora: bool = False
    branch: str | None = None
    normalized: bool = False

    @property
    def single_precision(self) -> bool:
        """The file holds float32 weights."""
        return self.model["descriptor"]["precision"] == "float32"

    @property
    def tolerance(self) -> float:
        """How far energies (eV per atom), forces (eV/Å) and virials (eV) may be from the peer's."""
        if self.model["descriptor"].get("lebedev_quadrature", True) is not True:
            return PRODUCT_GRID_TOLERANCE
        return TOLERANCE


def option_sets() -> list[OptionSet]:
    """Every option by itself, the SO(3) grid and ZBL, then random combinations."""
    return [*_network_options(), *_file_options(), *_grid_options(), *_random_sets()]


def all_sets() -> list[OptionSet]:
    """The option sets and the unlisted ones."""
    return [*option_sets(), *unlisted_sets()]


def find(name: str) -> OptionSet:
    """The set called `name`."""
    return next(one for one in all_sets() if one.name == name)


def _model(descriptor: dict[str, Any], fitting: dict[str, Any] | None = None, **top: Any) -> dict:
    """A DeePMD-kit model section: the base with these changes."""
    return {
        "type": "dpa4",
        "type_map": list(TYPE_MAP),
        "descriptor": copy.deepcopy(BASE_DESCRIPTOR | descriptor),
        "fitting_net": copy.deepcopy(BASE_FITTING | (fitting or {})),
        **copy.deepcopy(top),
    }


def _set(name: str, **descriptor: Any) -> OptionSet:
    """The base with these descriptor options."""
    return OptionSet(name, _model(descriptor))


def _network_options() -> list[OptionSet]:
    """One option of the network away from the base."""
    return [
        _set("base"),
        _set("paper_neo", lmax=3, n_blocks=2, mixing_layers=3, channels=32, n_radial=16, rcut=5.0),
        _set("paper_plus", lmax=4, n_blocks=2, mixing_layers=3, n_focus=2, layer_scale=True),
        _set("mmax_2", mmax=2, lmax=3, mixing_layers=3),
        _set("mmax_0", mmax=0),
        _set("mmax_none", mmax=None, lmax=3),
        _set("heads", n_atten_head=4, channels=16),
        _set("scatter", n_atten_head=0),
        _set("focuses", n_focus=3, n_atten_head=2),
        _set("focus_dim", n_focus=2, focus_dim=12, n_atten_head=3),
        _set("focus_dim_product", n_focus=2, focus_dim=4),
        _set("radial_none", radial_so2_mode="none", n_focus=2),
        _set("radial_degree", radial_so2_mode="degree", mmax=2),
        _set("radial_rank_0", radial_so2_rank=0),
        _set("radial_rank_2", radial_so2_rank=2, mmax=2, lmax=3, focus_dim=16),
        _set("mlp_bias", mlp_bias=True, n_focus=2, mixing_layers=3),
        _set("so2_norm", so2_norm=True, mixing_layers=3, n_focus=2),
        _set("layer_scale", layer_scale=True, mixing_layers=3, n_focus=2),
        _set("sandwich_so2_pre", sandwich_norm=[True, False, False, False], n_blocks=2),
        _set("sandwich_so2_post", sandwich_norm=[False, True, False, False], n_blocks=2),
        _set("sandwich_ffn_pre", sandwich_norm=[False, False, True, False], n_blocks=2),
        _set("sandwich_ffn_post", sandwich_norm=[False, False, False, True], n_blocks=2),
        _set("gaussian", basis_type="gaussian", n_radial=10),
        _set("one_gaussian", basis_type="gaussian", n_radial=1),
        _set("radial_mlp", radial_mlp=[12, 0, 10]),
        _set("ffn_blocks", ffn_blocks=2, layer_scale=True, sandwich_norm=[True, True, True, True]),
        _set("l_schedule", l_schedule=[4, 3, 1], m_schedule=[2, 1, 1], channels=8),
        _set("l_schedule_to_0", l_schedule=[2, 0], mmax=2),
        _set("lmax_0", lmax=0, kmax=0),
        _set("lmax_6", lmax=6, mmax=2),
        _set("edge_norm_off", edge_norm=False, n_focus=2, sandwich_norm=[True, True, True, True]),
        _set("env_seed_off", use_env_seed=False),
        _set("env_exp", env_exp=[5, 3]),
        _set("extra_node_l", extra_node_l=1, n_blocks=2),
        _set("no_glu", glu_activation=False),
        _set("no_grid", s2_activation=[False, False]),
        _set("no_grid_no_glu", s2_activation=[False, False], glu_activation=False, mlp_bias=True),
        _set("ffn_neurons", ffn_neurons=20),
        _set("readout_layers", readout_layers=3),
        _set("eps", eps=1e-6, n_focus=2),
        _set("wide", channels=72, lmax=1, n_blocks=2),
        _set("rcut_not_float32", rcut=5.3),
    ]


def _file_options() -> list[OptionSet]:
    """What the file says outside the network: versions, names, elements, charges, precision."""
    legacy = _model({"type": "SeZM", "so2_layers": 3}, {"type": "sezm_ener"})
    del legacy["descriptor"]["mixing_layers"]
    return [
        OptionSet("version_missing", _model({}), version=None),
        OptionSet("version_1_0", _model({"n_focus": 2, "edge_norm": False}), version=1.0),
        OptionSet("version_1_1", _model({}), version=1.1),
        OptionSet("legacy_names", legacy | {"type": "SeZM"}),
        OptionSet("float32_file", _model({"precision": "float32"}, {"precision": "float32"})),
        _set("exclude_types", exclude_types=[[0, 1], [4, 4]]),
        OptionSet("pair_exclude_types", _model({}, None, **ZBL, pair_exclude_types=[[0, 2]])),
        OptionSet("charge_spin", _model({"add_chg_spin_ebd": True}), charge_spin=True),
        _set("charge_spin_default", add_chg_spin_ebd=True, default_chg_spin=[-1.0, 2.0]),
        OptionSet("fitting_layers", _model({}, {"neuron": [24, 0]})),
        OptionSet("normalized", _model({"so3_readout": "glu"}, None, **ZBL), normalized=True),
        OptionSet("branch", _model({}), branch="Omat24"),
        OptionSet("lora", _model({"mmax": 2, "n_focus": 2}), lora=True),
        OptionSet("zbl", _model({"n_focus": 2}, None, **ZBL)),
        OptionSet("zbl_scatter", _model({"n_atten_head": 0, "lmax": 3}, None, **ZBL)),
    ]


def _grid_options() -> list[OptionSet]:
    """The SO(3) grid of messages, feed-forward and read-out, and its three operations."""
    return [
        _set("message_glu", message_node_so3=True),
        _set("message_mlp", message_node_so3=True, grid_mlp=[False, True, False], n_focus=2),
        _set("message_branch", message_node_so3=True, grid_branch=[0, 2, 0], n_focus=2, kmax=2),
        _set("message_bias", message_node_so3=True, mlp_bias=True, n_focus=2, n_atten_head=0),
        _set("ffn_so3_glu", ffn_so3_grid=True),
        _set("ffn_so3_mlp", ffn_so3_grid=True, grid_mlp=True, lmax=3, kmax=2),
        _set("ffn_so3_branch", ffn_so3_grid=True, grid_branch=3, grid_mlp=True),
        _set("ffn_s2_mlp", grid_mlp=True),
        _set("ffn_s2_branch", grid_branch=[0, 0, 2], mlp_bias=True),
        _set("kmax_0", ffn_so3_grid=True, message_node_so3=True, kmax=0),
        _set("readout_glu", so3_readout="glu", readout_layers=2),
        _set("readout_glu_width", so3_readout="glu", glu_activation=False),
        _set("readout_mlp", so3_readout="mlp", extra_node_l=1, n_blocks=2, kmax=2),
        _set("readout_pyramid", so3_readout="mlp", l_schedule=[2, 1], extra_node_l=1, kmax=2),
        _set(
            "schedule_so3",
            l_schedule=[3, 1],
            kmax=2,
            ffn_so3_grid=True,
            message_node_so3=True,
            so3_readout="mlp",
            mlp_bias=True,
            edge_norm=False,
        ),
    ]


def unlisted_sets() -> list[OptionSet]:
    """Options that exist in DeePMD-kit 3.2.0 and that design/model.md does not ask for."""

    def unlisted(option: str, **descriptor: Any) -> OptionSet:
        return OptionSet(f"unlisted_{option}", _model(descriptor), unlisted=option)

    def inputs(option: str, fitting: dict[str, Any]) -> OptionSet:
        model = _model({}, fitting)
        return OptionSet(f"unlisted_{option}", model, unlisted=option, evaluated=False)

    fitting = _model({}, {"activation_function": "tanh"})
    atoms = _model({}, None, atom_exclude_types=[2])
    return [
        unlisted("atten_f_mix", atten_f_mix=True, n_focus=2, n_atten_head=4),
        unlisted("atten_v_proj", atten_v_proj=True, n_focus=2, n_atten_head=2),
        unlisted("atten_o_proj", atten_o_proj=True, n_focus=2, n_atten_head=2),
        unlisted("node_wise_s2", node_wise_s2=True),
        unlisted("node_wise_so3", node_wise_so3=True),
        unlisted("message_node_s2", message_node_s2=True),
        unlisted("s2_activation", s2_activation=[True, True], mixing_layers=3),
        unlisted("lebedev_quadrature", lebedev_quadrature=False),
        unlisted("edge_cartesian", edge_cartesian=True),
        unlisted("node_cartesian", node_cartesian="default:2"),
        unlisted("so2_attn_res", so2_attn_res="independent", mixing_layers=3),
        unlisted("full_attn_res", full_attn_res="dependent", n_blocks=2),
        unlisted("block_attn_res", block_attn_res="independent", n_blocks=2),
        unlisted("activation_function", activation_function="gelu", s2_activation=[False, False]),
        unlisted("mixing_layers", mixing_layers=0, radial_so2_mode="none", n_focus=2),
        unlisted("n_blocks", n_blocks=0, so3_readout="glu"),
        OptionSet("unlisted_fitting_activation", fitting, unlisted="activation_function"),
        OptionSet("unlisted_atom_exclude_types", atoms, unlisted="atom_exclude_types"),
        inputs("numb_fparam", {"numb_fparam": 2}),
        inputs("numb_aparam", {"numb_aparam": 1}),
    ]


_CHOICES: dict[str, list[Any]] = {
    "rcut": [4.125, 4.5, 5.25],
    "channels": [8, 16, 24],
    "n_radial": [5, 8, 12],
    "lmax": [1, 2, 3],
    "mmax": [0, 1, 2],
    "n_blocks": [1, 2],
    "mixing_layers": [1, 2, 4],
    "n_atten_head": [0, 1, 2, 4],
    "n_focus": [1, 2, 3],
    "focus_dim": [0, 0, 8, 12],
    "radial_so2_mode": ["none", "degree", "degree_channel", "degree_channel"],
    "radial_so2_rank": [0, 1, 2],
    "mlp_bias": [False, True],
    "so2_norm": [False, True],
    "layer_scale": [False, True],
    "basis_type": ["bessel", "gaussian"],
    "radial_mlp": [[0], [0, 0], [10]],
    "ffn_blocks": [1, 2],
    "edge_norm": [True, True, False],
    "use_env_seed": [True, True, False],
    "extra_node_l": [0, 0, 1],
    "glu_activation": [True, False],
    "s2_activation": [[False, True], [False, False]],
    "ffn_neurons": [0, 20],
    "readout_layers": [1, 2],
    "message_node_so3": [False, True],
    "ffn_so3_grid": [False, True],
    "grid_mlp": [False, True, [False, True, False]],
    "grid_branch": [0, 2, [0, 0, 1]],
    "so3_readout": ["none", "glu", "mlp"],
    "kmax": [0, 1, 2],
    "exclude_types": [[], [], [[1, 2]]],
    "env_exp": [[7, 5], [5, 4]],
}


def _random_sets() -> list[OptionSet]:
    """Every option drawn independently, each value at least once; the same sets everywhere."""
    rng = np.random.default_rng(RANDOM_SEED + 4)
    columns = {key: _shuffled(rng, values) for key, values in _CHOICES.items()}
    versions = _shuffled(rng, [1.2, 1.2, 1.1, 1.0])
    sets = []
    for number in range(N_RANDOM_SETS):
        drawn = {key: column[number] for key, column in columns.items()}
        drawn["sandwich_norm"] = [bool(flag) for flag in rng.integers(2, size=4)]
        drawn["mmax"] = min(drawn["mmax"], drawn["lmax"])
        drawn["kmax"] = min(drawn["kmax"], drawn["lmax"])
        zbl = ZBL | {"bridging_r_outer": 1.3} if number % 3 == 0 else {}
        model = _model(drawn, None, **zbl)
        sets.append(OptionSet(f"random_{number}", model, version=versions[number]))
    return sets


def _shuffled(rng: np.random.Generator, values: list[Any]) -> list[Any]:
    """N_RANDOM_SETS values, each of the given ones as often as the others."""
    order = rng.permutation(N_RANDOM_SETS)
    return [values[index % len(values)] for index in order]


@dataclass(frozen=True)
class Structure:
    """One structure.

    Args:
        positions: (atom, 3) Å.
        symbols: elements out of TYPE_MAP.
        cell: (3, 3) Å, rows are lattice vectors; None when not periodic.
        charge: total charge in elementary charges, used by the sets that ask for it.
        spin: spin multiplicity, likewise.
        forceless: every force is zero by symmetry or for want of neighbours.
    """

    name: str
    positions: np.ndarray
    symbols: tuple[str, ...]
    cell: np.ndarray | None
    charge: int
    spin: int
    forceless: bool = False

    @property
    def types(self) -> np.ndarray:
        """Index of each atom into TYPE_MAP."""
        return np.array([TYPE_MAP.index(symbol) for symbol in self.symbols])

    @property
    def atomic_numbers(self) -> np.ndarray:
        """Nuclear charge of each atom."""
        return np.array([ATOMIC_NUMBERS[symbol] for symbol in self.symbols])


def structures() -> list[Structure]:
    """Awkward geometries first, then ordinary crystals, 1 to 200 atoms."""
    drawn = [*_clusters(), *_small_cells(), *_large_cells()]
    rng = np.random.default_rng(RANDOM_SEED + 1)
    charges, spins = rng.integers(-3, 4, len(drawn)), rng.integers(0, 6, len(drawn))
    return [
        Structure(name, np.asarray(positions, float), tuple(symbols), cell, int(q), int(s), still)
        for (name, positions, symbols, cell, still), q, s in zip(drawn, charges, spins, strict=True)
    ]


_Draft = tuple[str, Any, Any, np.ndarray | None, bool]


def _clusters() -> list[_Draft]:
    """Without a cell: exact and nearly exact +-z edges, lonely atoms, close pairs, a molecule."""
    on_z = [[0, 0, 0], [0, 0, 1.1], [0, 0, 2.4], [0, 0, -1.3], [0.9, 0, 1.1]]
    near_z = [[0, 0, 0], [1e-9, 0, 1.2], [0, -1e-6, -1.4], [1e-4, 1e-4, 2.6], [2e-3, 0, -2.7]]
    close = [[0, 0, 0], [0.2, 0.1, 0.25], [0.7, -0.4, 0.1], [-0.3, 0.9, 0.6], [0, 0, -1.02]]
    ethanol = [
        [-1.185, 0.004, 0.987], [0.750, 0.022, -0.402], [-1.167, 0.883, -0.600],
        [-1.165, -0.890, -0.586], [0.020, -0.012, 0.411], [1.252, 0.865, 0.310],
        [1.270, -0.851, 0.295], [2.100, 0.030, -0.950], [2.780, 0.030, -0.260],
    ]  # fmt: skip
    edge = [[0, 0, 0], [4.12, 0, 0], [0, 4.49, 0], [0, 0, 4.99], [-4.5001, 0, 0], [0, -5.24, 0]]
    cutoff = [*edge, *np.add(edge, [0.4, 0.6, 0.7])]  # dimers: version 1.0 diverges without
    return [
        ("on_z", on_z, ["H", "C", "O", "N", "H"], None, False),
        ("near_z", near_z, ["O", "C", "N", "H", "Cu"], None, False),
        ("one_atom", [[0.3, -0.2, 0.1]], ["Cu"], None, True),
        ("isolated", [[0, 0, 0], [30, 1, 2], [0, 40, 0]], ["N", "Cu", "N"], None, True),
        ("island", [[0, 0, 0], [1.1, 0.2, 0.3], [25, 0, 0]], ["N", "H", "O"], None, False),
        ("close", close, ["Cu", "H", "O", "C", "N"], None, False),
        ("molecule", ethanol, ["H", "C", "H", "H", "C", "H", "H", "O", "H"], None, False),
        ("cutoff", cutoff, ["O", "H", "C", "N", "Cu", "H"] * 2, None, False),
    ]


def _small_cells() -> list[_Draft]:
    """Periodic, some smaller than the cutoff; skewed, left-handed, close pairs across the face."""
    rng = np.random.default_rng(RANDOM_SEED + 2)
    fcc = 1.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], float)
    tiny = np.array([[2.3, 0, 0], [0.9, 2.2, 0], [-0.4, 0.7, 2.6]])
    skewed = np.array([[4.2, 0, 0], [2.9, 3.6, 0], [-1.7, 1.4, 4.8]])
    left = np.array([[0, 4.1, 0.3], [4.4, 0.2, 0], [0.5, 0.1, 3.9]])
    salt = np.array([[i, j, k] for i in (0, 2) for j in (0, 2) for k in (0, 2)], float)
    salt_symbols = ["Cu" if sum(site) % 4 == 0 else "O" for site in salt.astype(int)]
    slab_cell = np.array([[4.0, 0, 0], [1.3, 3.9, 0], [0, 0, 22.0]])
    slab = np.vstack([rng.random((8, 3)) * [1, 1, 0.2] @ slab_cell, [[0.5, 0.5, 5.6]]])
    slab[:4] += slab_cell[0] * 2 - slab_cell[2]
    slab[4:6] -= slab_cell[1] + 3 * slab_cell[2]
    close_cell = np.array([[5.0, 0, 0], [0, 5.2, 0], [0.8, 0, 4.9]])
    close = [[0.1, 0.1, 0.1], [4.9, 0.1, 0.2], [2.3, 2.5, 2.2], [2.3, 2.5, 3.1], [0.2, 4.7, 4.9]]
    return [
        ("fcc_primitive", np.zeros((1, 3)), ["Cu"], fcc, True),
        ("tiny", [[0.1, 0.2, 0.3]], ["O"], tiny, True),
        ("skewed", _spread(rng, 6, skewed), _symbols(rng, 6), skewed, False),
        ("left_handed", _spread(rng, 5, left), _symbols(rng, 5), left, False),
        ("rock_salt", salt + 0.5, salt_symbols, 4 * np.eye(3), True),
        ("slab", slab, _symbols(rng, 9), slab_cell, False),
        ("close_cell", close, ["H", "O", "C", "Cu", "N"], close_cell, False),
    ]


def _large_cells() -> list[_Draft]:
    """Many atoms: a dense crystal and a thin gas."""
    rng = np.random.default_rng(RANDOM_SEED + 3)
    dense = np.array([[8.1, 0, 0], [1.2, 8.4, 0], [0.3, -0.9, 8.8]])
    gas = np.array([[19.0, 0, 0], [0, 20.0, 0], [2.0, 0, 21.0]])
    return [
        ("dense", _spread(rng, 48, dense), _symbols(rng, 48), dense, False),
        ("gas", _spread(rng, 200, gas), _symbols(rng, 200), gas, False),
    ]


def _symbols(rng: np.random.Generator, n: int) -> list[str]:
    return [TYPE_MAP[index] for index in rng.integers(len(TYPE_MAP), size=n)]


def _spread(rng: np.random.Generator, n: int, cell: np.ndarray) -> np.ndarray:
    """n points on a jittered grid of the cell, so that no pair is absurdly close."""
    side = int(np.ceil(n ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = grid[rng.permutation(len(grid))[:n]]
    return (chosen + 0.25 + 0.5 * rng.random((n, 3))) / side @ cell
