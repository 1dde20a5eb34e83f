"""Results and references -> the ranked table, the report and the exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpa4sim.batch import symbol
from dpa4sim.pool.checkpoint import whole
from dpa4sim.screen.campaign import Campaign, writable
from dpa4sim.screen.export import export as write_structures
from dpa4sim.screen.export import write_csv
from dpa4sim.screen.hull import hull_table, reference_phases
from dpa4sim.screen.references import References, read_references
from dpa4sim.screen.report import write_page
from dpa4sim.screen.table import BUILT_IN, RESULTS

GEOMETRY = frozenset(("positions", "cell", "pbc"))


def rank(campaign: Campaign, results: pa.Table | None = None) -> pa.Table:
    """The hull table of what is known until now.

    Args:
        results: of the campaign, when they are at hand.

    Raises:
        DataError: a reference cannot be used.
        ResumeError: a part is damaged.
    """
    results = judged(campaign) if results is None else results
    asked = campaign.settings.hull
    references = references_of(campaign, results)
    table = hull_table(candidates_of(results), references, corrections=asked.corrections)
    return explained(table, results)


def explained(table: pa.Table, results: pa.Table) -> pa.Table:
    """Say in `reason` why elements have no reference, where nothing else is the matter.

    Args:
        table: of the hull.
        results: with the built-in crystals.
    """
    ended = {
        symbol(row["numbers"][0]): f"the built-in crystal {row['name']} ended as {_end(row)}"
        for row in results.filter(pc.equal(results["source"], BUILT_IN)).to_pylist()
        if row["numbers"] and len(set(row["numbers"])) == 1
    }
    columns = (table[name].to_pylist() for name in ("missing_references", "reason"))
    reasons = [
        reason or "; ".join(_lacks(element, ended) for element in (missing or "").split(", "))
        for missing, reason in zip(*columns, strict=True)
    ]
    place = table.column_names.index("reason")
    return table.set_column(place, table.schema.field(place), pa.array(reasons, pa.string()))


def _end(row: Mapping[str, Any]) -> str:
    """Flags say more than the status of one that converged and is no crystal any more."""
    return ", ".join(row["flags"] or [row["status"]])


def _lacks(element: str, ended: Mapping[str, str]) -> str:
    if not element:
        return ""
    why = ended.get(element, "none was given; --references and --built-in-references give some")
    return f"no reference of {element}: {why}"


def judged(campaign: Campaign) -> pa.Table:
    """The results, without the geometries unless the corrections look at bonds.

    Raises:
        ResumeError: a part is damaged.
    """
    if campaign.settings.hull.corrections != "none":
        return campaign.results()
    return campaign.results([name for name in RESULTS.names if name not in GEOMETRY])


def candidates_of(results: pa.Table) -> pa.Table:
    """Without the built-in crystals."""
    return results.filter(pc.not_equal(results["source"], BUILT_IN))


def references_of(campaign: Campaign, results: pa.Table) -> References:
    """The references of the files, and the built-in crystals that were relaxed as such."""
    asked = campaign.settings.hull
    references = read_references(
        asked.references,
        model_hash=campaign.settings.model.hash,
        mixed_references=asked.mixed_references,
        corrections=asked.corrections,
    )
    built_in = results.filter(pc.equal(results["source"], BUILT_IN))
    for phase in reference_phases(built_in, corrections=asked.corrections):
        references.add(phase)
    return references


def write_tables(folder: Path, table: pa.Table) -> None:
    """hull.parquet and hull.csv, each whole or not at all; the same table gives the same bytes."""
    with whole(folder / "hull.parquet") as partial:
        pq.write_table(table, partial, compression="zstd")
    write_csv(table, folder / "hull.csv")


def write_report(campaign: Campaign) -> pa.Table:
    """Write report/: the table, figures and a page; returns the table.

    Raises:
        DataError: a reference cannot be used.
        ResumeError: a part is damaged, or the directory cannot be written.
    """
    results = judged(campaign)
    references = references_of(campaign, results)
    asked = campaign.settings
    own = candidates_of(results)
    table = hull_table(own, references, corrections=asked.hull.corrections)
    table = explained(table, results)
    facts = {
        "model": asked.model.path or "made in Python",
        "hash": asked.model.hash,
        "fmax": f"{asked.relax.fmax:g} eV/Å",
        "references": str(len(references)),
        "corrections": asked.hull.corrections,
    }
    with writable(campaign.directory):
        campaign.report.mkdir(exist_ok=True)
        write_tables(campaign.report, table)
        write_page(
            campaign.report,
            own,
            table,
            references,
            title=campaign.directory.absolute().name,
            facts=facts,
            progress=campaign.ledger.throughput(),
        )
    return table


def export(
    campaign: Campaign, path: str | Path, *, kind: str, max_e_above_hull: float | None = None
) -> int:
    """Write relaxed structures as `dpa4sim.screen.export.export` does; how many there were."""
    results = campaign.results()
    return write_structures(
        candidates_of(results),
        rank(campaign, results),
        path,
        kind=kind,
        max_e_above_hull=max_e_above_hull,
        model_hash=campaign.settings.model.hash,
    )
