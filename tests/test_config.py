"""DPA4Config: what it accepts, how it refuses, and the sizes it stands for."""

import json
import tomllib
from dataclasses import FrozenInstanceError, fields

import pytest
from ase.data import chemical_symbols
from models import FILE_SETS

from dpa4sim.config import NAMED_SIZES, DPA4Config
from dpa4sim.errors import ConfigError
from dpa4sim.model import DPA4

ALL_ELEMENTS = tuple(chemical_symbols[1:119])
PLAIN = {"species": ["Si", "C"]}

WRONG = [
    ({"species": []}, "at least one element"),
    ({"species": ["C", "C"]}, "each once"),
    ({"species": ["Xx"]}, "not chemical symbols"),
    ({"species": ["X"]}, "not chemical symbols"),
    ({"species": "Si"}, "should be a list"),
    ({"channels": 0}, "channels = 0; it must be at least 1"),
    ({"channels": 8.0}, "channels = 8.0 is a float; expected int"),
    ({"channels": True}, "channels = True is a bool; expected int"),
    ({"so2_norm": 1}, "so2_norm = 1 is a int; expected bool"),
    ({"cutoff": "6"}, "cutoff = '6' is a str; expected float"),
    ({"cutoff": 0.0}, "positive length in Å"),
    ({"cutoff": float("nan")}, "positive length in Å"),
    ({"ffn_grid": "S2"}, "Choose one of 'none', 's2', 'so3'"),
    ({"descriptor_version": "2.0"}, "Choose one of '1.0', '1.1', '1.2'"),
    ({"norm_places": ["before"]}, "Choose one of 'before_convolution'"),
    ({"max_degree": -1}, "max_degree = -1; it must not be negative"),
    ({"max_order": -1}, "must give each block an M"),
    ({"order_schedule": [1]}, "must give each block an M"),
    ({"degree_schedule": [2, 1], "order_schedule": [2, 2]}, "must give each block an M"),
    ({"degree_schedule": [1, 2]}, "must not increase"),
    ({"n_heads": 3}, "n_heads = 3 must divide the 64 channels"),
    ({"n_heads": -1}, "n_heads = -1; it must not be negative"),
    ({"ffn_grid_operation": "branch"}, "needs ffn_grid_branches >= 1"),
    ({"message_grid_operation": "branch"}, "needs message_grid_branches >= 1"),
    ({"excluded_pairs": [["Si", "Cu"]]}, "each must be two of the species"),
    ({"excluded_pairs": [["Si"]]}, "each must be two of the species"),
    ({"zbl_inner": 1.0}, "Give both zbl_inner and zbl_outer"),
    ({"zbl_inner": 2.0, "zbl_outer": 1.0}, "0 < zbl_inner < zbl_outer <= cutoff"),
    ({"zbl_inner": 1.0, "zbl_outer": 7.0}, "0 < zbl_inner < zbl_outer <= cutoff"),
    ({"zbl_inner": "a", "zbl_outer": 1.0}, "zbl_inner = 'a' is a str; expected float or NoneType"),
]

NONSENSE = [
    {"envelope_exponents": [7]},
    {"envelope_exponents": [7, 5, 3]},
    {"envelope_exponents": [0, 5]},
    {"charge_spin": True, "default_charge_spin": [1.0]},
    {"focus_channels": -1},
    {"product_rank": -1},
    {"ffn_channels": -3},
    {"energy_hidden": [-4]},
    {"radial_hidden": [0, -3]},
    {"n_blocks": -1},
    {"extra_degree": -1},
    {"grid_order": -1},
    {"cutoff": float("inf")},
    {"epsilon": -1.0},
    {"max_degree": 30},
]


@pytest.mark.parametrize(("values", "reason"), WRONG)
def test_wrong_value_is_named(values, reason):
    with pytest.raises(ConfigError) as caught:
        DPA4Config.from_dict(PLAIN | values)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", NONSENSE, ids=lambda values: ",".join(values))
def test_nonsense_is_refused(values):
    with pytest.raises(ConfigError):
        DPA4Config.from_dict(PLAIN | values)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("chanels", "channels"),
        ("n_block", "n_blocks"),
        ("cut_off", "cutoff"),
        ("lmax_degree", "max_degree"),
    ],
)
def test_did_you_mean(key, meant):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'. Did you mean '{meant}'"):
        DPA4Config.from_dict(PLAIN | {key: 1})


def test_a_key_like_none_of_ours_gets_the_list():
    with pytest.raises(ConfigError) as caught:
        DPA4Config.from_dict(PLAIN | {"zzzzzz": 1})
    assert all(field.name in str(caught.value) for field in fields(DPA4Config))


def test_species_are_needed():
    with pytest.raises(ConfigError, match="has no 'species'"):
        DPA4Config.from_dict({})


def test_integers_serve_as_floats_and_lists_as_tuples():
    config = DPA4Config.from_dict(PLAIN | {"cutoff": 5, "radial_hidden": [0, 8]})
    assert config.cutoff == 5.0
    assert type(config.cutoff) is float
    assert config.radial_hidden == (0, 8)
    assert config.species == ("Si", "C")


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        DPA4Config(species=("C",)).channels = 8  # type: ignore[misc]


@pytest.mark.parametrize("name", FILE_SETS)
def test_round_trip_through_json(name):
    config = FILE_SETS[name]
    assert DPA4Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", FILE_SETS)
def test_round_trip_through_toml(name):
    """JSON's numbers, strings and lists are TOML's; what is None is left out."""
    config = FILE_SETS[name]
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    assert DPA4Config.from_dict(tomllib.loads(text)) == config


@pytest.mark.parametrize(
    ("size", "count"),
    [("neo", 1_596_868), ("air", 2_763_845), ("plus", 5_395_782), ("pro", 20_910_286)],
)
def test_sizes_of_the_paper(size, count):
    """Table S-17, with 118 species and layer scales."""
    model = DPA4(DPA4Config.named(size, ALL_ELEMENTS))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_unknown_size():
    with pytest.raises(ConfigError, match=r"no size 'nano'\. Choose one of neo, air, plus, pro"):
        DPA4Config.named("nano", ("C",))
    assert list(NAMED_SIZES) == ["neo", "air", "plus", "pro"]


def test_schedules_override_the_numbers():
    config = DPA4Config(species=("C",), degree_schedule=(4, 2, 1), max_order=2)
    assert config.degrees == (4, 2, 1)
    assert config.orders == (2, 2, 1)
    assert config.top_degree == 4
    plain = DPA4Config(species=("C",), n_blocks=2, max_degree=1, max_order=3)
    assert plain.degrees == (1, 1)
    assert plain.orders == (1, 1)


@pytest.mark.parametrize(
    ("values", "hidden"),
    [
        ({}, 192),
        ({"channels": 72}, 192),
        ({"channels": 73}, 224),
        ({"ffn_grid": "none", "gated_linear": False}, 256),
        ({"ffn_grid": "s2", "gated_linear": False}, 192),
        ({"ffn_channels": 20}, 20),
    ],
)
def test_hidden_width(values, hidden):
    """8/3 C where something gates, else 4 C, rounded up to 32."""
    assert DPA4Config(species=("C",), **values).hidden_channels == hidden


def test_every_option_is_explained():
    documented = DPA4Config.__doc__ or ""
    assert [field.name for field in fields(DPA4Config) if f"{field.name}:" not in documented] == []


def test_atomic_numbers_follow_the_species():
    assert DPA4Config(species=("Si", "C")).atomic_numbers == (14, 6)
