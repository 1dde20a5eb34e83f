"""Heads for direct forces: in words, and what rotations do to them."""

from dataclasses import replace
from math import pi, sqrt

import pytest
import torch
from models import BASE, NUMBERS, crystal, largest, molecule, random_model, rotated, rotation_matrix

from dpa4sim.config import DPA4Config
from dpa4sim.edges import neighbors
from dpa4sim.errors import ConfigError
from dpa4sim.model.dens import DirectOutput, ForceEmbedding, NoisyForces, VectorHead, mirror

TOLERANCE = 1e-11
"""Sums of some hundred numbers up to 10 in another order."""

DIRECT = replace(BASE, force_head="direct")


def model_of(**changes):
    model = random_model(replace(DIRECT, **changes))
    model.head.force_spread.fill_(1.7)
    model.head.energy_spread.copy_(torch.tensor([0.5, 2.0, 3.0]))
    return model


def said(model, batch, given=None) -> DirectOutput:
    edges = neighbors(batch, model.config.cutoff)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    return model.direct(species, edges, given=given)


def noisy_of(batch, seed=0) -> NoisyForces:
    generator = torch.Generator().manual_seed(seed)
    n = len(batch.positions)
    forces = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return NoisyForces(forces, torch.arange(n) % 2 == 0)


@pytest.mark.parametrize("batch", [molecule(), crystal()], ids=["molecule", "crystal"])
@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("changes", [{}, {"degree_schedule": (3, 1), "extra_degree": 1}])
def test_forces_rotate_with_the_structure(batch, displaced, changes):
    """The noise too, when the forces that the network is told are rotated as well."""
    model, matrix = model_of(**changes), rotation_matrix()
    given = noisy_of(batch) if displaced else None
    turned = NoisyForces(given.forces @ matrix.T, given.noisy) if given is not None else None
    before, after = said(model, batch, given), said(model, rotated(batch, matrix), turned)
    assert largest(before.forces) > 0.1
    for name in ("forces", "noise"):
        assert largest(getattr(after, name) - getattr(before, name) @ matrix.T) < TOLERANCE, name
    assert largest(after.energies - before.energies) < TOLERANCE


def test_mirrored_head_is_the_other_in_a_mirror():
    """Same weights: y of what goes in and of what comes out has the other sign, and no more."""
    right, wrong = model_of(), model_of(force_head="mirrored")
    batch, given = molecule(), noisy_of(molecule())
    a = said(right, batch, NoisyForces(mirror(given.forces), given.noisy))
    b = said(wrong, batch, given)
    assert largest(b.forces - mirror(a.forces)) < TOLERANCE
    assert largest(b.noise - mirror(a.noise)) < TOLERANCE
    assert largest(b.energies - a.energies) < TOLERANCE
    matrix = rotation_matrix()
    turned = said(wrong, rotated(batch, matrix)).forces
    assert largest(turned - said(wrong, batch).forces @ matrix.T) > 0.1


def test_a_vector_is_its_own_features():
    """Weight 1 into and out of degree 1: the way there and back is |f| along f."""
    embedding, head = ForceEmbedding(2, 1, False, 1e-7).double(), VectorHead(2, 1, False).double()
    with torch.no_grad():
        embedding.linear.weight.fill_(1.0)
        head.linear.weight.fill_(1.0)
    given = noisy_of(molecule())
    x = embedding(given)
    expected = given.forces / sqrt(3) * given.noisy[:, None]
    assert largest(head(x) - expected) < TOLERANCE
    assert largest(x[:, 0, 0] - expected.norm(dim=1) / sqrt(4 * pi)) < TOLERANCE


def test_atoms_in_place_get_no_features():
    model, batch = model_of(), molecule()
    with torch.no_grad():
        model.head.embedding.linear.bias.fill_(3.0)
    given = noisy_of(batch)
    x = model.head.embed(given)
    assert (x[~given.noisy] == 0).all()
    assert (x[given.noisy][:, 0] != 0).all()
    nobody = NoisyForces(given.forces, torch.zeros_like(given.noisy))
    for with_it, without_it in zip(said(model, batch, nobody), said(model, batch), strict=True):
        assert torch.equal(with_it, without_it)


def test_zero_force_has_no_direction_and_no_trouble():
    embedding = ForceEmbedding(3, 4, False, 1e-7).double()
    x = embedding(NoisyForces(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)))
    assert torch.equal(x, torch.zeros_like(x))


def test_statistics_in_words_and_in_double_precision():
    model, batch = model_of(), molecule()
    found = said(model, batch)
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    assert largest(found.forces - 1.7 * found.scaled_forces) < TOLERANCE
    energies = found.scaled_energies * model.head.energy_spread[species]
    assert largest(found.energies - energies - model.energy_shift[species]) < TOLERANCE
    model.to(torch.float32)
    assert model.head.energy_spread.dtype == model.head.force_spread.dtype == torch.float64
    assert model.head.force.linear.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_degree": 0, "max_order": 0}, "Give max_degree >= 1"),
        ({"degree_schedule": (2, 0), "order_schedule": (1, 0)}, "degree 0 only"),
        ({"zbl_inner": 0.8, "zbl_outer": 1.2}, "no ZBL term"),
        ({"property_head": {"name": "gap"}}, "of the property 'gap' has no forces"),
        ({"force_head": "sideways"}, "Choose one of 'none', 'direct', 'mirrored'"),
    ],
)
def test_options_that_do_not_go_together(changes, words):
    with pytest.raises(ConfigError, match=words):
        DPA4Config.from_dict(DIRECT.to_dict() | changes)


def test_config_without_a_head_does_not_mention_it():
    assert "force_head" not in BASE.to_dict()
    assert DPA4Config.from_dict(DIRECT.to_dict()) == DIRECT
