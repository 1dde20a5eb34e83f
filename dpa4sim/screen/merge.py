"""Shards that were worked on in copies of one campaign -> that campaign, complete."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dpa4sim.errors import ConfigError, ResumeError
from dpa4sim.screen.campaign import REMEDY, Campaign, alone, check_complete, open_campaign
from dpa4sim.screen.runner import mark_twins
from dpa4sim.screen.settings import agree
from dpa4sim.screen.table import is_sound
from dpa4sim.screen.workers import parse_shard

DECIDES = ("settings", "candidates")
"""Facts of the ledger that must be the same in all shards."""


def merge(directory: str | Path, shards: Sequence[str | Path]) -> Campaign:
    """One campaign of all its shards, as if it had never been divided.

    The results are the same to the last bit where `relax.max_edges` was given.

    Args:
        directory: of the merged campaign; must not exist.
        shards: directories, one for each of 1/n ... n/n, in any order.

    Raises:
        ConfigError: no shards are given, or the directory exists.
        ResumeError: a shard is missing, given twice, not done, damaged, or of another campaign.
    """
    directory = Path(directory)
    if not shards:
        raise ConfigError("There is nothing to merge. Give the directories of the shards.")
    if directory.exists():
        raise ConfigError(f"{directory} exists. Give the name of a new directory.")
    with ExitStack() as stack:
        campaigns = [stack.enter_context(open_campaign(path, read_only=True)) for path in shards]
        places = [_checked(campaign, campaigns[0]) for campaign in campaigns]
        _check_cover(campaigns, places)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".merge-") as partial:
            _write(Path(partial) / "campaign", campaigns, places)
            (Path(partial) / "campaign").rename(directory)
    merged = open_campaign(directory)
    mark_twins(merged)
    return merged


def _checked(campaign: Campaign, first: Campaign) -> tuple[int, int]:
    """The shard that a campaign is, which must be done and of the same work as the first."""
    check_complete(campaign)
    ledgers = first.ledger, campaign.ledger
    before, now = ({key: ledger.fact(key) for key in DECIDES} for ledger in ledgers)
    settings = [json.loads(facts.pop("settings") or "{}") for facts in (before, now)]
    agree(first.directory, settings[0], settings[1], REMEDY)
    for key in before:
        if before[key] != now[key]:
            raise ResumeError(
                f"{campaign.directory} has other {key.replace('_', ' ')} than {first.directory}: "
                "they are no shards of one campaign. Begin one campaign, and copy its directory."
            )
    shard = campaign.ledger.fact("shard")
    if shard is None:
        raise ResumeError(
            f"{campaign.directory} was never run. Type: dpa4sim screen run "
            f"{campaign.directory} --shard i/n."
        )
    place = parse_shard(shard)
    parts = {part.chunk: part for part in campaign.ledger.parts()}
    total = sum(campaign.ledger.chunks().values())
    for chunk in range(place[0] - 1, total, place[1]):
        part = parts.get(chunk)
        if part is None or not is_sound(campaign.parts / part.name, part.size, part.digest):
            what = "not done" if part is None else "damaged"
            raise ResumeError(
                f"{campaign.directory} is shard {shard}, and its chunk {chunk} is {what}. Type: "
                f"dpa4sim screen run {campaign.directory} --shard {shard}."
            )
    return place


def _check_cover(campaigns: Sequence[Campaign], places: Sequence[tuple[int, int]]) -> None:
    n = places[0][1]
    for campaign, place in zip(campaigns, places, strict=True):
        if place[1] != n or places.count(place) > 1:
            raise ResumeError(
                f"{campaign.directory} is shard {place[0]}/{place[1]}, which does not go with "
                f"the others or is given twice. Give each of 1/{n} to {n}/{n} once."
            )
    missing = [i for i in range(1, n + 1) if (i, n) not in places]
    if missing:
        raise ResumeError(f"Shard {missing[0]}/{n} is missing. Give each of 1/{n} to {n}/{n} once.")


def _write(
    directory: Path, campaigns: Sequence[Campaign], places: Sequence[tuple[int, int]]
) -> None:
    """The first shard's directory, with what the others know."""
    (directory / "results").mkdir(parents=True)
    shutil.copy2(campaigns[0].directory / "campaign.toml", directory)
    campaigns[0].ledger.copy(directory / "ledger.sqlite")
    for campaign in campaigns:
        for part in campaign.ledger.parts():
            shutil.copy2(campaign.parts / part.name, directory / "results")
    merged = open_campaign(directory)
    with merged, alone(merged):
        for campaign, place in zip(campaigns, places, strict=True):
            merged.ledger.adopt(campaign.ledger, place)
        merged.ledger.remember(shard="1/1")
