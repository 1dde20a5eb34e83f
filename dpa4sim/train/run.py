"""train(): labelled frames -> Potential, in a run directory that survives kill -9."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa4sim import __version__
from dpa4sim.branches import Branches
from dpa4sim.data.sampler import EdgeBudget
from dpa4sim.direct import DirectModel
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.kernels.precision import matmul_precision
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel, load_any
from dpa4sim.train.average import WeightAverage
from dpa4sim.train.build import Split, build, open_split, schedule_of
from dpa4sim.train.compiled import prepare
from dpa4sim.train.dens import EXPERIMENTAL, DirectTrainer
from dpa4sim.train.directory import RunDirectory, Table, read_state
from dpa4sim.train.ending import Ending, asked_to_end, deterministic, device_name
from dpa4sim.train.feed import Feed, StepPlan
from dpa4sim.train.loop import LOOK_EVERY, Trainer
from dpa4sim.train.muon import HybridMuon, parameter_groups
from dpa4sim.train.property import PropertyTrainer
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.report import LiveLine, columns_of, in_short, shown, write_curves, write_parity
from dpa4sim.train.settings import Settings, read_settings
from dpa4sim.train.spin import SpinTrainer, load_of, said_of
from dpa4sim.train.validation import batches_of, merit, validation_errors

PARITY_ATOMS = 20_000
"""Validation atoms that parity.png shows at most."""

type Opened = Potential | PropertyModel | DirectModel | Branches
"""What a run ends with."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        directory: where everything is.
        potential: averaged weights with the best validation; a PropertyModel where a property was
            trained on, Branches where several sets were.
        errors: of `potential` on the validation frames; units of `train.report.SHOWN`.
        steps: that were taken.
        skipped: steps whose loss was not finite.
    """

    directory: Path
    potential: Opened
    errors: dict[str, float]
    steps: int
    skipped: int


def train(
    settings: str | Path | Mapping[str, Any],
    *,
    directory: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: bool | None = None,
) -> TrainResult:
    """Train a network, or go on with a run that was interrupted.

    Args:
        settings: a TOML file or plain values; see `train.settings.Settings`.
        directory: of the run; without it, the TOML file's name without its ending.
        overrides: "table.key=value".
        progress: False writes nothing to stderr.

    Raises:
        ConfigError: settings that cannot be used.
        DataError: frames or labels that cannot be used, or too many steps in a row with a loss
            that is not finite.
        ResumeError: the directory was begun with something else, or is damaged.
    """
    if directory is None:
        if isinstance(settings, Mapping):
            raise ConfigError("Settings from Python need a folder: train(..., directory='run').")
        directory = Path(settings).with_suffix("")
    asked, path = read_settings(settings, overrides), Path(directory)
    ranks = Ranks.join(asked.run.device, asked.data.batches_per_step)
    parts: Any = open_split(asked) if not asked.branches else None
    kind: Any = TrainingRun
    if parts is None:
        from dpa4sim.train.branch_run import BranchRun
        from dpa4sim.train.branches import open_branches

        kind, parts = BranchRun, open_branches(asked)
    quiet = progress is False or not ranks.writes
    place = None
    if ranks.writes:
        place = RunDirectory(path, asked, kind.hashes(*parts))
    try:
        with deterministic(asked.run.deterministic), asked_to_end() as ending:
            run: TrainingRun = kind(asked, *parts, ranks, path, place, quiet)
            return run.go(ending)
    finally:
        if place is not None:
            place.close()


class TrainingRun:
    """One run from where its directory stands to its end.

    Args:
        path: the run directory.
        place: its files; None in a process that writes none.
        quiet: say nothing on stderr.
    """

    def __init__(
        self,
        settings: Settings,
        train_set: Split,
        valid_set: Split,
        ranks: Ranks,
        path: Path,
        place: RunDirectory | None,
        quiet: bool,
    ):
        self.settings, self.ranks, self.path, self.place = settings, ranks, path, place
        self.train_set, self.valid_set = train_set, valid_set
        self.device = ranks.device(settings.run.device)
        self.notes: list[str] = []
        self.trainer = self._trainer(self._network().to(self.device))
        self.live = LiveLine(settings.run.steps, settings.run.log_every_s, quiet)
        self.table = Table(path / "train.csv", self._columns())
        self.best, self.elapsed = math.inf, 0.0
        self.told = self.trainer.fresh_errors()
        self.begun = time.monotonic()
        self._resume()

    def go(self, ending: Ending) -> TrainResult:
        """Every step that is left, validations, checkpoints; then the report."""
        if self.trainer.model.config.force_head != "none":
            self.notes.append(EXPERIMENTAL)
        for line in (self._introduction(), *filter(None, self.notes)):
            self._say(line)
        every, total = self.settings.run.validate_every, self.settings.run.steps
        saved = time.monotonic()
        for step in self.trainer.steps():
            if self.live.due():
                self._line(step)
            if step % LOOK_EVERY == 0:
                self._look()
            if step == total or (every and step % every == 0):
                self._validate(step)
            due = time.monotonic() - saved >= self.settings.run.checkpoint_every_s
            over = self._together(step) and self.ranks.any(bool(ending.signal))
            if due or over or step == total:
                self._checkpoint()
                saved = time.monotonic()
            if over:
                self._say(f"asked to end at step {step}; the same command goes on from here")
                raise SystemExit(128 + (ending.signal or signal.SIGTERM))
        return self._finish()

    def _trainer(self, model: DPA4) -> Trainer:
        asked, run = self.settings, self.settings.run
        compiled = self.device.type == "cuda" if run.compile is None else run.compile
        half = torch.bfloat16 if run.autocast else None
        model = prepare(model, compile=compiled, products=half, recompute=run.recompute)
        model.train()
        muon = asked.optimizer.name == "hybrid_muon"
        groups = parameter_groups(
            model, lr=asked.optimizer.lr, weight_decay=asked.optimizer.weight_decay, muon=muon
        )
        optimizer = HybridMuon(groups, lr=asked.optimizer.lr, magma=asked.optimizer.magma)
        rows = torch.full((120,), -1)
        rows[list(model.config.atomic_numbers)] = torch.arange(len(model.config.species))
        return self._kind(model)(
            model,
            rows.to(self.device),
            optimizer,
            schedule_of(optimizer, asked.schedule, asked.optimizer.lr, run.steps),
            WeightAverage(model, asked.optimizer.average),
            self._feed(model),
            asked,
            self.ranks,
            lambda: matmul_precision(run.matmul),
        )

    def _network(self) -> DPA4:
        return build(self.settings, self.train_set, self.valid_set)

    def _kind(self, model: DPA4) -> type[Trainer]:
        if model.config.force_head != "none":
            return DirectTrainer
        if model.config.has_spins:
            return SpinTrainer
        return PropertyTrainer if model.config.property_head.name else Trainer

    def _feed(self, model: DPA4) -> Feed:
        return self._feed_of(self.train_set, model)

    def _feed_of(self, part: Split, model: DPA4) -> Feed:
        """Batches of one training set."""
        data, store, frames = self.settings.data, part.store, part.frames
        edges, atoms, more_labels = self._load(part, model)
        sampler = EdgeBudget(
            edges,
            atoms,
            max_edges=data.max_edges or int(edges.sum()) + len(frames),
            max_atoms=data.max_atoms or None,
            multiple=data.batches_per_step,
            seed=self.settings.run.seed,
        )
        return Feed(
            store,
            frames,
            sampler,
            batches_per_step=data.batches_per_step,
            ranks=self.ranks,
            device=self.device,
            more_labels=more_labels,
        )

    def _load(self, part: Split, model: DPA4) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Edges and atoms of each training frame, and labels that only this kind of model has."""
        store, frames = part.store, part.frames
        if not model.config.has_spins:
            return store.n_edges(model.config.cutoff)[frames], store.n_atoms[frames], None
        load = load_of(store, frames, model.config)
        self.notes += [said_of(load, model.config)]
        labels = np.zeros((1, len(store)), np.int64)
        labels[0, frames] = load.n_labels
        return load.n_edges, load.n_atoms, labels

    @staticmethod
    def hashes(train_set: Split, valid_set: Split) -> dict[str, str]:
        """Contents of the stores, which must be the same when the run goes on."""
        return {"train": train_set.store.content_hash, "valid": valid_set.store.content_hash}

    def _columns(self) -> dict[str, str]:
        """Names and units of train.csv."""
        return columns_of(self.trainer.errors)

    def _resume(self) -> None:
        """Where the directory stands; every process reads the same file."""
        state = None
        if self.place is not None:
            state = self.place.load()
            self.table.rewind(0 if state is None else state["trainer"]["done"])
        self.ranks.wait()
        if self.ranks.world > 1 and self.place is None:
            state = read_state(self.path)
        if state is not None:
            self.trainer.load_state(state["trainer"])
            self.best, self.elapsed = state["best"], state["elapsed"]

    def _checkpoint(self) -> None:
        if self.place is None:
            return
        self._averaged().save(self.path / "last.safetensors")
        elapsed = self.elapsed + time.monotonic() - self.begun
        state = {"trainer": self.trainer.state(), "best": self.best, "elapsed": elapsed}
        self.place.save(state)

    def _together(self, step: int) -> bool:
        """Whether processes ask each other at this step; one alone asks itself at any."""
        return self.ranks.world == 1 or step % LOOK_EVERY == 0

    def _look(self) -> None:
        """Stop when too many steps in a row were skipped, and say where the frames come from."""
        plans = self.trainer.too_many_skipped()
        if not plans:
            return
        names = sorted({name for plan in plans for name in self._where(plan)})
        shown_names = "; ".join(names[:5]) + (f"; {len(names) - 5} more" if names[5:] else "")
        raise DataError(
            f"The loss or its gradient was not finite in {len(plans)} steps in a row. They had "
            f"these frames: {shown_names}. Look at them with dpa4sim data check, or lower "
            "optimizer.lr."
        )

    def _where(self, plan: StepPlan) -> Iterator[str]:
        """Where the frames of a step come from."""
        for row in plan.frames:
            yield self.train_set.store.where(int(row))

    def _validate(self, step: int) -> None:
        """A row of train.csv, curves.png, and the best weights so far."""
        potential = self._averaged()
        found = self._errors(potential)
        trained = self.trainer.errors
        self.ranks.sum(trained.sums)
        self.ranks.sum(trained.labels)
        row = {
            "step": step,
            "epoch": self.trainer.cursor.epoch,
            "learning_rate": self.trainer.rate,
            "elapsed": self.elapsed + time.monotonic() - self.begun,
            "skipped": float(self.trainer.guard.total),
            **shown(trained.read(), "train_"),
            **shown(found, "valid_"),
        }
        self.trainer.errors, self.told = self.trainer.fresh_errors(), self.trainer.fresh_errors()
        score = self._merit(found)
        first = math.isinf(self.best)  # something must be kept, however bad
        better, self.best = first or score < self.best, min(score, self.best)
        if self.place is None:
            return
        self.table.add(row)
        write_curves(self.table.rows, self.path / "curves.png")
        if better:
            self._note(potential, {"step": step, **shown(found)})
            potential.save(self.path / "best.safetensors")
        note = "  the best so far" if better else ""
        self._say(f"validation at step {step}:  {self._in_words(found)}{note}")
        self.live.pause(self.trainer.atoms)

    def _errors(self, model: Any) -> dict[str, float]:
        return validation_errors(model, self.valid_set, self.ranks)

    def _merit(self, found: dict[str, float]) -> float:
        return merit(found, self.settings)

    def _in_words(self, found: dict[str, float]) -> str:
        return in_short(found)

    def _note(self, model: Any, record: dict[str, float]) -> None:
        """Errors that the file of the best weights carries."""
        model.card["validation"] = record

    def _averaged(self) -> Opened:
        """The averaged weights as a model of its own."""
        model = copy.deepcopy(self.trainer.model)
        self.trainer.average.copy_to(model)
        record = {"steps": self.trainer.done, "settings": self.settings.to_dict()}
        card = {"training": record, "made_with": f"dpa4sim {__version__}"}
        if self.settings.finetune.lora_rank:
            from dpa4sim.train.lora import fold

            model = fold(model)
        return self._opened(model, card)

    def _opened(self, model: DPA4, card: dict[str, Any]) -> Opened:
        kind: Any = PropertyModel if model.config.property_head.name else Potential
        if model.config.force_head != "none":
            kind = DirectModel
        return kind(model, card=card, device=self.device, dtype=self.settings.run.dtype)

    def _best(self) -> tuple[Any, dict[str, float]]:
        """The best weights that were kept, and their errors."""
        path, dtype = self.path / "best.safetensors", self.settings.run.dtype
        best = load_any(path, device=self.device, dtype=dtype)
        return best, dict(best.card["validation"])

    def _draw_parity(self, best: Any) -> None:
        write_parity(best, batches_of(self.valid_set, PARITY_ATOMS), self.path / "parity.png")

    def _sizes(self) -> tuple[int, int]:
        """Training and validation frames."""
        return len(self.train_set.frames), len(self.valid_set.frames)

    def _finish(self) -> TrainResult:
        self.ranks.wait()
        best, errors = self._best()
        result = TrainResult(
            self.path, best, errors, self.trainer.done, int(self.trainer.guard.total)
        )
        if self.place is not None:
            self._draw_parity(best)
            self.place.write_json("report.json", self._report(result))
            self._say(f"done: {self.path}")
        return result

    def _report(self, result: TrainResult) -> dict[str, Any]:
        elapsed = self.elapsed + time.monotonic() - self.begun
        return {
            "validation": result.errors,
            "steps": result.steps,
            "skipped_steps": result.skipped,
            "elapsed_s": elapsed,
            "parameters": self._parameters(result.potential),
            "training_frames": self._sizes()[0],
            "validation_frames": self._sizes()[1],
            "processes": self.ranks.world,
            "device": device_name(self.device),
            "versions": {"dpa4sim": __version__, "torch": torch.__version__},
            "settings": self.settings.to_dict(),
        }

    def _parameters(self, best: Any) -> int:
        return sum(p.numel() for p in best.model.parameters())

    def _introduction(self) -> str:
        n_train, n_valid = self._sizes()
        model = self.trainer.model
        weights = sum(p.numel() for p in self.trainer.parameters)
        from_step = f", going on from step {self.trainer.done}" if self.trainer.done else ""
        return (
            f"{n_train} training and {n_valid} validation "
            f"frames, {len(model.config.species)} species, {weights} weights in training, "
            f"{device_name(self.device)}{from_step}"
        )

    def _line(self, step: int) -> None:
        trainer = self.trainer
        recent, self.told = trainer.errors.since(self.told), trainer.errors.copy()
        line = self.live.write(step, trainer.atoms, trainer.rate, recent.read())
        if self.place is not None:
            self.place.say(line)

    def _say(self, line: str) -> None:
        if self.place is not None:
            self.place.say(line)
        self.live.say(line)
