"""Random numbers that belong to an atom and a step, whatever else shares the batch.

A block of four 32-bit words is a function of a counter and a key (Philox-4x32 with ten rounds,
Salmon, Moraes, Dror and Shaw, SC'11, "Parallel random numbers: as easy as 1, 2, 3"):

    counter   number of the atom in its system (or of the block), step, identity, stream
    key       the 64 bits of the seed

Nothing is kept between calls and nothing is drawn in an order, so a trajectory is the same alone,
in any batch, and after a resume.  The words are integers and the same on every device; logarithm
and cosine round differently on CPU and CUDA, so normals agree between them to rounding only.
"""

from __future__ import annotations

from enum import IntEnum
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

WORD = 0xFFFFFFFF
"""The low 32 bits, in which a word lives; what a product leaves above them is masked off later."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

SMALLEST_ROOT = 1e-60
"""Stands for a negative root of a variate, which is never accepted: log v = -414 then."""

type Words = tuple[Tensor, Tensor, Tensor, Tensor]


class Stream(IntEnum):
    """What the numbers are for: two uses never share a counter."""

    VELOCITIES = 0
    LANGEVIN = 1
    RESCALING = 2


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words of 32 bits for each counter, in int64.

        c0', c1', c2', c3' = hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)

    and k grows by a constant between rounds.  Two words are worked on at a time.  A product that
    overflows int64 still has its lowest 64 bits right, which is all of it.

    Args:
        counter: four words of one shape, int64 in [0, 2^32).
        key: two words of a shape that broadcasts to it.
    """
    even, odd = torch.stack(counter[0::2]), torch.stack(counter[1::2])
    keys = torch.stack(key)
    multipliers, steps = _pair(MULTIPLIERS, even), _pair(KEY_STEPS, even)
    for turn in range(ROUNDS):
        if turn > 0:
            keys = keys + steps
        products = (even * multipliers).flip(0)
        even = (products >> 32).bitwise_xor_(odd).bitwise_xor_(keys).bitwise_and_(WORD)
        odd = products
    odd = odd & WORD
    return even[0], odd[0], even[1], odd[1]


def words(
    number: Int[Tensor, "*#row"],
    step: Int[Tensor, "*#row"],
    identity: Int[Tensor, "*#row"],
    stream: Stream,
    seed: Int[Tensor, "*#row"],
) -> Words:
    """The block of each row; the shapes broadcast.

    Args:
        number: of the atom in its system, or of the block.
        step: the system's own.
        identity: of the system, the same in any batch.
        seed: 64 bits.
    """
    number, step, identity = torch.broadcast_tensors(number, step & WORD, identity & WORD)
    use = torch.full_like(number, int(stream))
    return philox((number, step, identity, use), (seed & WORD, (seed >> 32) & WORD))


def uniform(word: Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """A number inside (0, 1), never 0 or 1: (word + 1/2) / 2^32."""
    return (word.double() + 0.5) * 2.0**-32


def normal_pair(
    first: Int[Tensor, "*row"], second: Int[Tensor, "*row"]
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """Two independent standard normals from two words (Box and Muller); |x| < 6.8."""
    radius = (-2.0 * uniform(first).log()).sqrt()
    angle = (2.0 * pi) * uniform(second)
    return radius * angle.cos(), radius * angle.sin()


def normals(block: Words) -> Float[Tensor, "*row 3"]:
    """Three independent standard normals from each block; the fourth is never computed."""
    x, y = normal_pair(block[0], block[1])
    radius = (-2.0 * uniform(block[2]).log()).sqrt()
    z = radius * ((2.0 * pi) * uniform(block[3])).cos()
    return torch.stack([x, y, z], -1)


def chi_square(
    normal: Float[Tensor, "system tries"],
    chance: Float[Tensor, "system tries"],
    degrees_of_freedom: Float[Tensor, " system"],
) -> Float[Tensor, " system"]:
    """A sum of squares of `degrees_of_freedom` standard normals.

    Twice a gamma variate of shape a = degrees_of_freedom / 2, by Marsaglia and Tsang (ACM Trans.
    Math. Softw. 26, 363, 2000): with d = a - 1/3 and v = (1 + x / sqrt(9 d))^3, d v is taken if

        log u < x^2/2 + d - d v + d log v

    A try fails with a probability below 0.049 (a = 1; less for larger a).  All tries are made at
    once and the first good one counts; the last counts in any case, which for six tries is wrong
    once in 1e8.

    Args:
        normal: x, standard normals.
        chance: u, uniform in (0, 1).
        degrees_of_freedom: at least 2.
    """
    d = (0.5 * degrees_of_freedom - 1.0 / 3.0)[:, None]
    root = (1.0 + normal / (9.0 * d).sqrt()).clamp(min=SMALLEST_ROOT)
    v = root * root * root
    good = chance.log() < 0.5 * normal * normal + d * (1.0 - v + v.log())
    first = torch.where(good, 0, normal.shape[1]) + torch.arange(
        normal.shape[1], device=normal.device
    )
    chosen = first.argmin(1, keepdim=True)
    return (2.0 * d * v.gather(1, chosen))[:, 0]


def _pair(constants: tuple[int, int], like: Tensor) -> Tensor:
    """Two constants along a new first axis, made on the device: a copy from the host may wait."""
    first, second = constants
    pair = torch.arange(2, device=like.device) * (second - first) + first
    return pair.reshape(2, *[1] * (like.ndim - 1))
