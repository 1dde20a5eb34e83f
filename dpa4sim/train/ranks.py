"""The processes of one training run, one per device, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpa4sim.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and sums over all of them.

    Args:
        rank: number of this process; 0 writes the files.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str, batches_per_step: int) -> Ranks:
        """Join the others, if `torchrun` started this process.

        Raises:
            ConfigError: the batches of a step can't be shared out evenly.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if batches_per_step % world:
            raise ConfigError(
                f"data.batches_per_step = {batches_per_step} cannot be shared by {world} "
                f"processes. Give a multiple of {world}."
            )
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), world)

    @property
    def writes(self) -> bool:
        """Whether this process owns the run directory."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: "cuda" is a card of its own for each."""
        if name == "cuda" and self.world > 1:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device(name)

    def sum(self, values: Tensor) -> None:
        """Sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says yes."""
        if self.world == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        votes = torch.tensor(int(flag), device=device)
        dist.all_reduce(votes)
        return bool(votes.item())

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Gradients and loss of a step from the shares of all processes, in one message.

        The loss of each batch is divided by the labels of the whole step, so the sum is what one
        process with all the batches would have.
        """
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)])  # float64
        dist.all_reduce(flat)
        loss.copy_(flat[0])
        parts = flat[1:].split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
