"""dpa4sim screen init | run | status | report | export | merge: a campaign in a directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dpa4sim.cli.options import check_device
from dpa4sim.cli.table import fixed, properties, table
from dpa4sim.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from dpa4sim.potential import Potential
    from dpa4sim.screen.campaign import Campaign
    from dpa4sim.screen.settings import Model, Settings

NOT_ALL = 3
"""Exit code: finished, but some candidates did not converge."""

INTERRUPTED = 130

FINE = frozenset(("converged", "duplicate"))
LISTED = 20
HEADERS = ("rank", "name", "formula", "system", "above hull (eV/atom)", "E_form (eV/atom)", "flags")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-verbs."""
    verbs = parser.add_subparsers(metavar="init|run|status|report|export|merge", required=True)
    init = verbs.add_parser("init", help="begin a campaign: read and check its candidates")
    _add_directory(init)
    _add_candidates(init)
    _add_relaxation(init)
    _add_hull(init)
    init.set_defaults(step=_init)
    run = verbs.add_parser("run", help="relax what is not relaxed yet; type it again to go on")
    _add_directory(run)
    run.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    run.add_argument("--workers", metavar="N", type=int, default=0, help="processes; one per GPU")
    run.add_argument("--shard", metavar="i/n", default="", help="only every n-th chunk, from i on")
    run.add_argument(
        "--checkpoint-every", metavar="S", type=float, default=60.0, help="seconds [60]"
    )
    run.add_argument("--quiet", action="store_true", help="no progress on stderr")
    run.set_defaults(step=_run)
    status = verbs.add_parser("status", help="how far it is; may be asked at any time")
    _add_directory(status)
    status.set_defaults(step=_status)
    report = verbs.add_parser("report", help="tables, figures and a page of what is known by now")
    _add_directory(report)
    report.add_argument("--list", type=int, default=LISTED, help=f"rows to print [{LISTED}]")
    report.set_defaults(step=_report)
    export = verbs.add_parser("export", help="relaxed structures in another format")
    _add_directory(export)
    export.add_argument(
        "--format",
        required=True,
        choices=("extxyz", "cif", "db", "entries", "parquet", "csv"),
        help="entries: of pymatgen; cif: a folder",
    )
    export.add_argument(
        "--max-above-hull", metavar="E", type=float, help="leave out what is higher, eV/atom"
    )
    export.add_argument("-o", "--out", metavar="OUT", type=Path, required=True)
    export.set_defaults(step=_export)
    merge = verbs.add_parser("merge", help="shards -> one campaign")
    merge.add_argument("directory", metavar="OUT", type=Path, help="a new directory")
    merge.add_argument("shards", metavar="DIR", type=Path, nargs="+", help="one for each shard")
    merge.set_defaults(step=_merge)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of the campaign")


def _add_candidates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a released name, a .safetensors file or a DeePMD-kit .pt"
    )
    parser.add_argument("--branch", default="", help="branch of a multi-task checkpoint")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="precision [float32]"
    )
    parser.add_argument(
        "--candidates", metavar="FILE", nargs="+", default=[], help="files, folders or globs"
    )
    parser.add_argument(
        "--chemical-system",
        metavar="A-B-C",
        nargs="+",
        default=[],
        help="decorate prototypes with these elements, such as Li-Fe-O",
    )
    parser.add_argument(
        "--prototypes",
        action="store_true",
        help="with --chemical-system: the built-in prototypes (which is the default)",
    )
    parser.add_argument(
        "--substitute", metavar="FILE", nargs="+", default=[], help="your structures instead"
    )
    parser.add_argument("--structure-column", metavar="NAME", default="", help="of CSV files")
    parser.add_argument("--name-column", metavar="NAME", default="", help="of CSV files")
    parser.add_argument(
        "--keep-duplicates", action="store_true", help="relax equal structures each by itself"
    )
    parser.add_argument(
        "--chunk-size", metavar="N", type=int, default=512, help="relaxed together [512]"
    )
    parser.add_argument(
        "--reader-timeout", metavar="S", type=float, default=60.0, help="per structure [60]"
    )


def _add_relaxation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fmax", type=float, default=0.02, help="converged below, eV/Å [0.02]")
    parser.add_argument("--fixed-cell", action="store_true", help="move the atoms only")
    parser.add_argument("--max-steps", type=int, default=500, help="moves per structure [500]")
    parser.add_argument("--optimizer", default="lbfgs", choices=("lbfgs", "fire"), help="[lbfgs]")
    parser.add_argument(
        "--cell-filter", default="frechet", choices=("frechet", "unit"), help="of fire [frechet]"
    )
    parser.add_argument("--pressure-gpa", metavar="P", type=float, default=0.0, help="[0]")
    parser.add_argument("--fix-symmetry", action="store_true", help="keep the space group")
    parser.add_argument(
        "--max-edges", metavar="N", type=float, default=0.0, help="in the working set [measured]"
    )
    parser.add_argument(
        "--max-force-spread",
        metavar="S",
        type=float,
        default=0.0,
        help="of an ensemble: structures beyond are uncertain and not ranked, eV/Å [no limit]",
    )


def _add_hull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--references", metavar="FILE", nargs="+", default=[], help="pymatgen entries as JSON"
    )
    parser.add_argument(
        "--mixed-references", action="store_true", help="they may be of another theory"
    )
    parser.add_argument(
        "--corrections", default="none", choices=("none", "mp2020"), help="of energies [none]"
    )
    parser.add_argument(
        "--built-in-references",
        action="store_true",
        help="relax built-in crystals of the elements, and common binaries, as references",
    )


def run(args: argparse.Namespace) -> int:
    """The step that is asked for."""
    try:
        return int(args.step(args))
    except KeyboardInterrupt:
        print("interrupted; what was done is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _init(args: argparse.Namespace) -> int:
    from dpa4sim.screen.run import init

    potential = _potential(args.model, args.branch, "cpu", args.dtype)
    with init(args.directory, _settings(args, potential), potential, progress=True) as campaign:
        print(_counts(campaign))
        print(f"Type: dpa4sim screen run {args.directory}")
    return 0


def _settings(args: argparse.Namespace, potential: Potential) -> Settings:
    from dpa4sim.pool.checkpoint import model_fingerprint
    from dpa4sim.screen.run import absolute
    from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings

    if (args.prototypes or args.substitute) and not args.chemical_system:
        raise ConfigError(
            "--prototypes and --substitute need the elements. Give --chemical-system, such as "
            "Li-Fe-O."
        )
    is_file = Path(args.model).is_file()
    return Settings(
        model=Model(
            path=absolute([args.model])[0] if is_file else args.model,
            branch=args.branch,
            dtype=args.dtype,
            hash=model_fingerprint(potential),
        ),
        candidates=Candidates(
            files=absolute(args.candidates),
            chemical_systems=tuple(args.chemical_system),
            substitute=absolute(args.substitute),
            structure_column=args.structure_column,
            name_column=args.name_column,
            deduplicate=not args.keep_duplicates,
            chunk_size=args.chunk_size,
            reader_timeout_s=args.reader_timeout,
        ),
        relax=Relaxation(
            fmax=args.fmax,
            cell=not args.fixed_cell,
            optimizer=args.optimizer,
            cell_filter=args.cell_filter,
            max_steps=args.max_steps,
            pressure_gpa=args.pressure_gpa,
            fix_symmetry=args.fix_symmetry,
            max_edges=args.max_edges,
            max_force_spread=args.max_force_spread,
        ),
        hull=Hull(
            references=absolute(args.references),
            mixed_references=args.mixed_references,
            corrections=args.corrections,
            built_in=args.built_in_references,
        ),
    )


def _run(args: argparse.Namespace) -> int:
    from dpa4sim.screen.campaign import open_campaign
    from dpa4sim.screen.runner import run
    from dpa4sim.screen.workers import parse_shard, run_workers

    shard = parse_shard(args.shard)
    with open_campaign(args.directory) as campaign:
        if args.workers:
            check_device(args.device)
            run_workers(
                campaign,
                args.workers,
                device=args.device,
                shard=args.shard,
                progress=not args.quiet,
                checkpoint_every_s=args.checkpoint_every,
            )
        else:
            run(
                campaign,
                _of(campaign, args.device),
                shard=shard,
                progress=not args.quiet,
                checkpoint_every_s=args.checkpoint_every,
            )
        print(_counts(campaign))
        states = campaign.ledger.states()
        return 0 if set(states) <= {*FINE, "queued"} else NOT_ALL


def _of(campaign: Campaign, device: str) -> Potential:
    """The model that a campaign was begun with, as far as its name says."""
    asked: Model = campaign.settings.model
    if not asked.path:
        raise ConfigError(
            f"{campaign.directory} was begun in Python with a model that is in no file. Go on "
            "with the same call of dpa4sim.screen(...)."
        )
    return _potential(asked.path, asked.branch, device, asked.dtype)


def _potential(path: str, branch: str, device: str, dtype: str) -> Potential:
    from dpa4sim.potential import load

    check_device(device)
    return load(path, branch=branch or None, device=device, dtype=dtype)


def _status(args: argparse.Namespace) -> int:
    from dpa4sim.screen.campaign import open_campaign
    from dpa4sim.screen.ingest import is_complete

    with open_campaign(args.directory, read_only=True) as campaign:
        print(_counts(campaign))
        if not is_complete(campaign.ledger):
            print("Its candidates are not all read; give the command that began it again.")
    return 0


def _counts(campaign: Campaign) -> str:
    """Candidates by how they ended, and the speed until now."""
    ledger = campaign.ledger
    states, chunks = ledger.states(), ledger.chunks()
    relaxed, seconds = ledger.relaxed()
    rows = [("candidates", str(sum(states.values())))]
    rows += [(name.replace("_", " "), str(count)) for name, count in states.items()]
    rows.append(("chunks", f"{chunks.get('done', 0)} of {sum(chunks.values())} done"))
    if seconds > 0:
        rows.append(("speed", f"{3600 * relaxed / seconds:.3g} structures/h per worker"))
    return properties(rows)


def _report(args: argparse.Namespace) -> int:
    from dpa4sim.screen.campaign import open_campaign
    from dpa4sim.screen.rank import write_report

    with open_campaign(args.directory, read_only=True) as campaign:
        ranked = write_report(campaign)
        rows = ranked.filter(ranked["rank"].is_valid()).sort_by("rank").slice(0, args.list)
        print(table(HEADERS, [_line(row) for row in rows.to_pylist()], left=4))
        print(f"\n{ranked.num_rows} candidates, the whole table in {campaign.report}.")
        print(_unranked(ranked), end="")
    return 0


def _unranked(ranked: pa.Table) -> str:
    """How many have no place, and what the hull lacks."""
    count = ranked["rank"].null_count
    columns = (ranked[name].to_pylist() for name in ("missing_references", "reason"))
    lacks = sorted({reason for missing, reason in zip(*columns, strict=True) if missing and reason})
    return "\n".join([f"{count} not ranked.", *lacks, ""]) if count else ""


def _line(row: dict) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else fixed(value, 4)

    above = number(row["e_above_hull_self"])
    text = [str(row["rank"]), row["name"], row["formula"], row["chemical_system"], above]
    return [*text, number(row["formation_energy"]), " ".join(row["flags"] or [])]


def _export(args: argparse.Namespace) -> int:
    from dpa4sim.screen.campaign import open_campaign
    from dpa4sim.screen.rank import export

    with open_campaign(args.directory, read_only=True) as campaign:
        count = export(campaign, args.out, kind=args.format, max_e_above_hull=args.max_above_hull)
    print(f"{count} structures written to {args.out}.")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from dpa4sim.screen.merge import merge

    with merge(args.directory, args.shards) as campaign:
        print(_counts(campaign))
    return 0
