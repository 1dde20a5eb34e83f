"""What can go wrong, said once: exceptions for the border, Status for systems inside a batch."""

from enum import IntEnum


class Dpa4simError(ValueError):
    """Base of every error that dpa4sim raises on purpose."""


class ConfigError(Dpa4simError):
    """A setting that cannot be used; the message names the key and what would be valid."""


class DataError(Dpa4simError):
    """A structure, label or file that cannot be used; the message names file, index and key."""


class ModelError(Dpa4simError):
    """A model or checkpoint that cannot be used; the message names the file and the option."""


class ResumeError(Dpa4simError):
    """A run directory that cannot be continued; the message names what differs."""


class NonConservativeWarning(UserWarning):
    """Forces are used that are not the gradient of the energy beside them."""


class Status(IntEnum):
    """How one system of a batch ended.  A sick system is marked, never raised."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NOT_FINITE = 3
    EXPLODED = 4
    COLLAPSED = 5
    OUT_OF_MEMORY = 6
    INVALID = 7
    COMPLETED = 8
    UNCERTAIN = 9

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "every force and cell force is below fmax",
    Status.MAX_STEPS: "stopped at max_steps before the forces fell below fmax",
    Status.NOT_FINITE: "energy, force, stress, position or cell became NaN or infinite",
    Status.EXPLODED: "a force passed 1e3 eV/Å or the volume grew past 5 times the start",
    Status.COLLAPSED: "the volume shrank below 0.2 times the start",
    Status.OUT_OF_MEMORY: "the system does not fit on the device by itself",
    Status.INVALID: "the input structure cannot be used",
    Status.COMPLETED: "ran to its last step",
    Status.UNCERTAIN: "the members of the ensemble disagree by more than max_force_spread",
}

SICK = frozenset(
    {
        Status.NOT_FINITE,
        Status.EXPLODED,
        Status.COLLAPSED,
        Status.OUT_OF_MEMORY,
        Status.INVALID,
        Status.UNCERTAIN,
    }
)
"""What `strict=True` raises about; running out of steps is an answer, not a sickness."""
