"""Embeddings: what a network knows about atoms and structures, as arrays and as one HDF5 file.

    descriptor           of each atom: the scalars that the head reads
    atomic_feature       of each atom: the head's last hidden layer
    structural_feature   of each structure: the sum of its atoms' features

The file has the layout of DeePMD-kit's `dp embed`: a group per system, in it these three with the
frames as the first axis, `atom_types` as rows of the file's `type_map`, and the attributes
`nframes` and `system`.  A source whose frames differ in size has a group per number of atoms, and
every group says by `frames` which frame of the source each row is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.complaint import complaint
from dpa4sim.direct import DirectModel
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.moments import magnetic_numbers, moments_of, with_moments
from dpa4sim.pool.checkpoint import whole
from dpa4sim.pool.progress import Progress
from dpa4sim.potential import Potential, checked_batch, state_complaint
from dpa4sim.property import PropertyModel, network_inputs

FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
"""Readable by every HDF5 library; the bytes of floats shrink best when sorted by place."""

BYTES_PER_CHUNK = 2**18


@dataclass(frozen=True)
class Embedding:
    """Invariant features of a batch, in the model's precision.

    Args:
        descriptor: the scalars of the read-out.
        atomic_feature: the head's last hidden layer.
        structural_feature: its sum over the atoms, which is extensive.
    """

    descriptor: Float[Tensor, "atom channel"]
    atomic_feature: Float[Tensor, "atom hidden"]
    structural_feature: Float[Tensor, "system hidden"]


@dataclass(frozen=True)
class Item:
    """A structure on its way into the file.

    Args:
        source: the file or folder that it is from.
        frame: its number there.
        where: both, for messages.
        system: the structure, or why there is none.
    """

    source: str
    frame: int
    where: str
    system: Batch | DataError


def embed(model: Potential | PropertyModel | DirectModel, structures: Any) -> Embedding:
    """Descriptors and features of structures, in one batch.

    Args:
        structures: ASE Atoms, pymatgen Structure, TorchSim state, Batch, a path, or a list.

    Raises:
        DataError: a structure cannot be used; the message says which and why.

    Invariant under rotations, translations and the order of the atoms.
    """
    from dpa4sim.adapters.files import structures_to_batches

    systems = structures_to_batches(structures)
    batch = checked_batch(systems, model.config, model.known_elements)
    return embed_batch(model, batch.to(model.device))


@torch.no_grad()
def embed_batch(model: Potential | PropertyModel | DirectModel, batch: Batch) -> Embedding:
    """The same of a trusted batch on the model's device: one forward pass, no forces."""
    species, edges, charge, spin, searched = network_inputs(model, batch)
    moments = None
    if model.config.has_spins:
        moments = moments_of(batch).to(edges.vector.dtype)
    descriptor, feature = model.model.features(species, edges, charge, spin, moments)
    if searched is not None:
        broken = ~searched[batch.system_idx][:, None]
        descriptor = descriptor.masked_fill(broken, torch.nan)
        feature = feature.masked_fill(broken, torch.nan)
    total = feature.new_zeros(batch.n_systems, feature.shape[1], dtype=torch.float64)
    total = total.index_add(0, batch.system_idx, feature.double())
    return Embedding(descriptor, feature, total.to(feature.dtype))


def write_embeddings(
    model: Potential | PropertyModel | DirectModel,
    paths: Iterable[str | Path] | str | Path,
    out: str | Path,
    *,
    batch_atoms: int = 2000,
    progress: bool | None = None,
) -> dict[str, int]:
    """Embeddings of all structures of files and folders, in one HDF5 file in DeePMD-kit's layout.

    Structures are read, embedded and written as they come; the file appears whole or not at all.

    Args:
        paths: structures or labelled data in any format.
        out: of the file.
        batch_atoms: atoms that are evaluated together; a larger structure goes by itself.
        progress: None shows a bar on a terminal; True also writes lines elsewhere.

    Returns:
        Structures of each group.

    Raises:
        ConfigError: a batch of less than an atom.
        DataError: no structure, or one that cannot be used; the message says which and why.
    """
    if batch_atoms < 1:
        raise ConfigError(f"batch_atoms = {batch_atoms} is too small. Give 1 or more.")
    bar = Progress("embed", None, progress)
    with whole(Path(out)) as partial, h5py.File(partial, "w") as file:
        writer = EmbeddingFile(file, model)
        for items in batches(checked(read_items(paths), model), batch_atoms):
            writer.add(items)
            bar.advance(len(items))
        groups = writer.finish()
    bar.close()
    return groups


def read_items(paths: Iterable[str | Path] | str | Path) -> Iterator[Item]:
    """Structures of any format, labelled or not, one after another.

    Raises:
        DataError: no such file, or an unknown format.
    """
    from dpa4sim.adapters.files import read_structures
    from dpa4sim.data.frame import LabelKeys
    from dpa4sim.data.read import find_sources
    from dpa4sim.data.read_ase import read_ase

    given = [paths] if isinstance(paths, str | Path) else list(paths)
    sources = [found for path in given for found in find_sources(str(path))]
    for source, read in sources:
        if read is read_ase:  # labels of this format are not needed: any structure file will do
            for number, record in enumerate(read_structures(source)):
                yield Item(source, number, record.label, record.batch)
            continue
        for number, entry in enumerate(read(source, LabelKeys())):
            if isinstance(entry, DataError):
                yield Item(source, number, f"{source}#{number}", entry)
            else:
                yield Item(entry.source, number, entry.where, entry.system)


def checked(
    items: Iterable[Item], model: Potential | PropertyModel | DirectModel
) -> Iterator[Item]:
    """The same, or an error at the first that cannot be used.

    Raises:
        DataError: which, and why.
    """
    for item in items:
        if isinstance(item.system, DataError):
            raise item.system
        reason = complaint(item.system, model.known_elements)
        reason = reason or state_complaint(item.system, model.config)
        if reason is not None:
            raise DataError(f"{item.where} cannot be embedded: {reason}.")
        yield item


def batches(items: Iterable[Item], batch_atoms: int) -> Iterator[list[Item]]:
    """Structures of at most so many atoms together."""
    group: list[Item] = []
    used = 0
    for item in items:
        size = len(item.system.positions)  # type: ignore[union-attr]
        if group and used + size > batch_atoms:
            yield group
            group, used = [], 0
        group.append(item)
        used += size
    if group:
        yield group


class EmbeddingFile:
    """An embedding file in the making.

    Args:
        file: open for writing.
        model: whose embeddings they are.
    """

    def __init__(self, file: Any, model: Potential | PropertyModel | DirectModel) -> None:
        self.file, self.model = file, model
        self._names: dict[tuple[str, int], str] = {}
        file.attrs["type_map"] = np.array(model.config.species, dtype=h5py.string_dtype())

    def add(self, items: list[Item]) -> None:
        """Embed some structures together and append them."""
        magnetic = magnetic_numbers(self.model.config)
        batch = Batch.concatenate(with_moments(item.system, magnetic) for item in items)  # type: ignore[arg-type]
        found = embed_batch(self.model, batch.to(self.model.device))
        sizes = batch.n_atoms.tolist()
        types = self.model._species_of[batch.atomic_numbers.to(self.model.device)]
        parts = {
            "descriptor": _split(found.descriptor, sizes),
            "atomic_feature": _split(found.atomic_feature, sizes),
            "structural_feature": list(found.structural_feature.cpu().numpy()),
            "atom_types": _split(types.int(), sizes),
            "frames": [np.int64(item.frame) for item in items],
        }
        rows: dict[tuple[str, int], list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault((item.source, sizes[row]), []).append(row)
        for key, chosen in rows.items():
            blocks = {name: np.stack([all_[r] for r in chosen]) for name, all_ in parts.items()}
            self._append(key, blocks)

    def finish(self) -> dict[str, int]:
        """Give the groups their names; structures of each.

        Raises:
            DataError: there was no structure.
        """
        if not self._names:
            raise DataError("No structure was given. Give at least one.")
        used: set[str] = set()
        counts = {}
        per_source: dict[str, int] = {}
        for source, _ in self._names:
            per_source[source] = per_source.get(source, 0) + 1
        for (source, size), group in self._names.items():
            base = Path(source.replace("#", "/")).name or "system"
            word = base if per_source[source] == 1 else f"{base}-{size}-atoms"
            name = _unused(word, used)
            self.file.move(group, name)
            self.file[name].attrs["nframes"] = len(self.file[name]["frames"])
            self.file[name].attrs["system"] = source
            counts[name] = int(self.file[name].attrs["nframes"])
        del self.file["unfinished"]
        return counts

    def _append(self, key: tuple[str, int], blocks: Mapping[str, np.ndarray]) -> None:
        name = self._names.setdefault(key, f"/unfinished/{len(self._names)}")
        group = self.file.require_group(name)
        for word, block in blocks.items():
            if word not in group:
                shape = block.shape[1:]
                chunks = _chunks(shape, block.dtype.itemsize)
                maxshape = (None, *shape)
                group.create_dataset(word, data=block, maxshape=maxshape, chunks=chunks, **FILTERS)
                continue
            dataset = group[word]
            before = len(dataset)
            dataset.resize(before + len(block), 0)
            dataset[before:] = block


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Of so many bytes: some frames together, or some atoms of a large frame."""
    room = BYTES_PER_CHUNK // itemsize
    if len(shape) == 2:
        shape = (max(1, min(shape[0], room // shape[1])), shape[1])
    return (max(1, room // int(np.prod(shape, dtype=int))), *shape)


def _split(values: Tensor, sizes: list[int]) -> list[np.ndarray]:
    return np.split(values.cpu().numpy(), np.cumsum(sizes)[:-1])


def _unused(word: str, used: set[str]) -> str:
    """The word, numbered if it is taken, as DeePMD-kit does."""
    name, number = word, 0
    while name in used:
        number += 1
        name = f"{word}_{number}"
    used.add(name)
    return name
