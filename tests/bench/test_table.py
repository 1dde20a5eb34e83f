"""The page of performance says what the records say."""

import json

import pytest

from bench import table
from bench.table import CLAIMS, PAGE, Claim, lines, newest, text


def test_the_page_is_made_from_the_records():
    assert PAGE.read_text() == text(), "type: python -m bench table"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.what[:40])
def test_every_claim_has_a_record(claim):
    assert newest(claim.record)
    (row, *_) = lines([claim])
    assert row.count(" | ") == 5


def test_a_missed_target_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RECORDS", tmp_path)
    for name, value in (("slow.this", 1.0), ("slow.that", 3.0)):
        record = {"hardware": name, "value": value}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    claim = Claim("speed", ">= 2", "slow", lambda r: (f"{r['value']}", r["value"] >= 2))
    assert [row.split(" | ")[3] for row in lines([claim])] == ["met", "**missed**"]
