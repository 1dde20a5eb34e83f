"""The page: what it holds, that it needs nothing from outside, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from ase import Atoms
from matplotlib.image import imread
from pymatgen.core import Composition
from screened import results, row

from dpa4sim.screen.hull import hull_table
from dpa4sim.screen.index import Phase
from dpa4sim.screen.references import References
from dpa4sim.screen.report import write_page
from dpa4sim.screen.systems import drawable, system_hulls

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BUDGET_MS = 20_000
"""Of the page's own time, which ends earlier when nothing is left to do."""


def crystal(formula: str) -> Atoms:
    atoms = Atoms(formula, cell=[20, 20, 20], pbc=True)
    atoms.positions[:, 0] = range(len(atoms))
    return atoms


@pytest.fixture(scope="module")
def references() -> References:
    found = References()
    ends = (("li", "Li", 0.0), ("fe", "Fe", 0.0), ("o", "O2", 0.0), ("f", "F2", 0.0))
    for name, formula, energy in (*ends, ("lio", "Li2O", -6.0), ("feo", "Fe2O3", -8.0)):
        found.add(Phase.of(name, Composition(formula), energy))
    return found


@pytest.fixture(scope="module")
def tables(references: References) -> tuple[pa.Table, pa.Table]:
    energies = [("LiFeO2", -9.0), ("LiF", -5.0), ("LiFeOF", -9.5), ("FeO", -1.0), ("FeO", None)]
    energies += [("NaFeO2", -9.0), ("Li2FeO3", -9.1), ("LiFeO2", -8.0)]
    rows = [row(i, crystal(formula), e) for i, (formula, e) in enumerate(energies)]
    rows[0]["name"] = "</script><b>{{data}} & co"
    rows[4] |= {"status": "duplicate", "reason": "equals c3", "steps": None, "fmax": None}
    rows[6]["flags"] = ["symmetry_changed"]
    table = results(rows)
    return table, hull_table(table, references)


@pytest.fixture(scope="module")
def page(tables: tuple[pa.Table, pa.Table], references: References, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("report")
    facts = {"model": "<seed>", "note": "{{more}}"}
    progress = [(0.0, 0), (60.0, 4), (120.0, 8)]
    return write_page(
        folder, *tables, references, title="Li & Fe <oxides>", facts=facts, progress=progress
    )


class Reader(HTMLParser):
    """Texts by the id of their element, the tags that were opened, and where links go."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.links += [str(given[key]) for key in ("src", "href", "xlink:href") if key in given]
        self.open.append(str(given.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        self.open.append("")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1]:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    return reader


def unpacked(reader: Reader, name: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(reader.texts[name])))


def column(rows: dict, name: str) -> list:
    words = rows["words"].get(name)
    return [words[place] for place in rows[name]] if words else rows[name]


def test_the_page_holds_every_row(read: Reader, tables: tuple[pa.Table, pa.Table]) -> None:
    rows, hull = unpacked(read, "data")["rows"], tables[1]
    for name in ("rank", "name", "formula", "status", "n_atoms"):
        assert column(rows, name) == hull[name].to_pylist()
    for name, full in (("self", "e_above_hull_self"), ("formation", "formation_energy")):
        for shown, exact in zip(column(rows, name), hull[full].to_pylist(), strict=True):
            assert shown == (None if exact is None else pytest.approx(exact, abs=5e-6))
    assert [bool(each) for each in rows["stable"]] == hull["stable"].to_pylist()
    assert sum(rows["stable"]) == 3
    more = unpacked(read, "more")
    assert column(more, "decomposition") == [d or "" for d in hull["decomposition"].to_pylist()]
    assert column(more, "missing")[5] == "Na"
    assert column(more, "reason")[4] == "equals c3"


def test_nothing_is_asked_from_outside(page: Path, read: Reader) -> None:
    assert all(link.startswith("#") for link in read.links)
    assert "default-src 'none'" in page.read_text()
    addresses = set(re.findall(r"https?://[\w./-]+", page.read_text()))
    # names of XML vocabularies, which nobody opens
    vocabulary = re.compile(r"https?://(www\.w3\.org|purl\.org|creativecommons\.org|matplotlib)")
    assert all(vocabulary.match(address) for address in addresses)


def test_names_and_facts_cannot_change_the_page(page: Path, read: Reader) -> None:
    text = page.read_text()
    assert "<title>Li &amp; Fe &lt;oxides&gt;</title>" in text
    assert "&lt;seed&gt;" in text
    assert "<b>{{more}}</b>" in text
    assert read.tags.count("script") == 3
    assert "& co" not in text


def test_cards_count_what_there_is(page: Path) -> None:
    shown = re.findall(r"<strong>([\d,]+)</strong><span>([^<]+)</span>", page.read_text())
    assert {name: int(count) for count, name in shown} == {
        "candidates": 8,
        "converged": 7,
        "duplicate": 1,
        "stable": 3,
        "within 25 meV/atom": 3,
        "within 50 meV/atom": 3,
        "within 100 meV/atom": 3,
    }


def test_hulls_are_those_of_the_table(
    read: Reader, tables: tuple[pa.Table, pa.Table], references: References
) -> None:
    table = tables[1]
    systems = {each["name"]: each for each in unpacked(read, "data")["systems"]}
    assert set(systems) == {"Fe-Li-O", "Fe-O", "F-Li", "F-Fe-Li-O"}
    above = {each["id"]: each for each in table.to_pylist()}
    for system in systems.values():
        for shares, formation, distance, formula, candidate, _ in system["points"]:
            assert sum(shares) == pytest.approx(1, abs=1e-4)
            if candidate is not None:
                assert distance == pytest.approx(above[candidate]["e_above_hull_self"], abs=1e-5)
                assert formation == pytest.approx(above[candidate]["formation_energy"], abs=1e-5)
                assert formula == above[candidate]["formula"]
    line = systems["F-Li"]
    assert {tuple(sorted(line["points"][i][3] for i in edge)) for edge in line["edges"]} == {
        ("F2", "LiF"),
        ("Li", "LiF"),
    }
    # a triangle whose corners, two sides (Li2O, Fe2O3) and middle (LiFeO2) are stable
    (wide,) = system_hulls(table, references, [("Fe", "Li", "O")])
    stable = {point.formula for point in wide.points if point.stable}
    assert stable == {"Li", "Fe", "O2", "Li2O", "Fe2O3", "LiFeO2"}
    corners, sides = len(stable), 5  # 3 sides, two of them cut in two
    assert len(wide.edges) == 3 * corners - 3 - sides
    assert drawable(table)[0] == ("Fe", "Li", "O")


def test_figures_are_files(page: Path) -> None:
    names = {file.name for file in page.parent.iterdir()}
    figures = {"distances.png", "relaxation.png", "throughput.png"}
    hulls = {f"hull-{name}.png" for name in ("Fe-Li-O", "Fe-O", "F-Li", "F-Fe-Li-O")}
    assert names == {"report.html", *figures, *hulls}
    for name in figures | hulls:
        image = imread(page.parent / name)
        assert image.shape[0] > 400
        assert image[..., :3].std() > 0.02  # not blank


def test_an_empty_campaign_has_a_page(tmp_path: Path) -> None:
    empty = results([])
    page = write_page(tmp_path, empty, hull_table(empty, References()), References())
    reader = Reader()
    reader.feed(page.read_text())
    data = unpacked(reader, "data")
    assert data["systems"] == []
    assert data["rows"]["rank"] == []


@pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)), reason="no Chromium is installed; it draws the page"
)
def test_a_browser_sorts_searches_and_draws(page: Path, tmp_path: Path) -> None:
    steps = """<script>
    const wait = setInterval(async () => {
      if (document.body.dataset.ready !== "true") return;
      clearInterval(wait);
      const said = [], lines = () => [...document.querySelectorAll(".line")].map(
        (line) => Number(line.dataset.row));
      const note = () => said.push(lines());
      note();
      document.querySelector("[data-key=n_atoms] button").click(); note();
      document.querySelector("[data-key=n_atoms] button").click(); note();
      $("search").value = "fe-li symmetry"; filterRows(); note();
      $("search").value = ""; $("stable").checked = true; filterRows(); note();
      await choose(1);
      said.push(document.querySelectorAll("#plot .point").length);
      said.push($("details").textContent.includes("LiF (c1)"));
      const made = document.createElement("pre");
      made.id = "said";
      made.textContent = JSON.stringify(said);
      document.body.append(made);
    }, 20);
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text().replace("</body>", steps))
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--virtual-time-budget={BUDGET_MS}"]
    done = subprocess.run(
        [*command, driven.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-2000:]
    first, fewest, most, searched, stable, points, told = json.loads(found[1])
    by_rank = {row: rank for row, rank in enumerate(unpacked_ranks(page)) if rank is not None}
    assert first == [*sorted(by_rank, key=by_rank.__getitem__), 4, 5]
    assert fewest[:3] == [1, 3, 4]  # two atoms each, the ranked ones first
    assert most[0] == 6
    assert searched == [6]
    assert len(stable) == 3
    assert points == 3
    assert told


def unpacked_ranks(page: Path) -> list[int | None]:
    reader = Reader()
    reader.feed(page.read_text())
    return unpacked(reader, "data")["rows"]["rank"]
