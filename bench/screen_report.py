"""How long the report of a large campaign takes to open in headless Chromium.

    python -m bench screen_report [--candidates 100000] [--rounds 5] [--quick]

The candidates of the `hull` bench, with random energies above the hull.  The page itself notes the
milliseconds from the beginning of the navigation to the drawn table, figures and hulls.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pyarrow as pa

from bench.hull import candidates, symbols
from bench.measure import company
from bench.record import save
from dpa4sim.screen.hull import HULL
from dpa4sim.screen.index import Phase, PhaseIndex
from dpa4sim.screen.report import write_page
from dpa4sim.screen.table import to_table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NOTE = b"""<script>setInterval(() => {
  const ms = document.body.dataset.readyMs;
  if (ms) fetch("/ready/" + ms);
}, 20)</script>"""
"""Tells the bench; the page of a campaign asks no server for anything."""

KEPT = ("id", "name", "formula", "chemical_system", "n_atoms", "status", "reason", "flags")


def page(folder: Path, count: int) -> Path:
    """A report of so many candidates."""
    from pymatgen.core import Composition

    luck, rows, seen = random.Random(1), [], []
    for place, row in enumerate(candidates(count).select(KEPT).to_pylist()):
        above = abs(luck.gauss(0.1, 0.2))
        names = {"name": f"candidate-{place}-{row['formula']}", "missing_references": ""}
        names |= {"decomposition": f"0.5 Fe2O3 (mp-{place}) + 0.5 Li2O (mp-{place + 7})"}
        energies = {"energy_per_atom": -1.0 - luck.random(), "correction_per_atom": 0.0}
        energies |= {"formation_energy": -luck.random(), "e_above_hull_self": above}
        energies |= {"e_above_hull_reference": above - 0.05, "stable": above < 1e-3}
        rows.append({**row, **names, **energies, "rank": place + 1, "space_group": 1 + place % 230})
        relaxed = {"steps": luck.randint(1, 300), "fmax": 0.02 * luck.random()}
        seen.append({**row, **relaxed, "volume": row["n_atoms"] * 12.3, "space_group_start": 5})
    known = PhaseIndex()
    for symbol in symbols():
        known.add(Phase.of(symbol, Composition(symbol), 0.0))
    return write_page(folder, to_table(seen), pa.Table.from_pylist(rows, schema=HULL), known)


class Host(BaseHTTPRequestHandler):
    """Gives the page, and hears when it is ready."""

    page: bytes = b""
    heard: Queue[float] = Queue()

    def do_GET(self) -> None:
        """The page, or its note."""
        if self.path.startswith("/ready/"):
            self.heard.put(int(self.path.removeprefix("/ready/")) / 1000)
        body = self.page if self.path == "/" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


def opened(browser: str, path: Path) -> float:
    """Seconds from the navigation to the page that is ready, by the page's own clock."""
    alone, may = b"default-src 'none'", b"default-src *"  # the note needs the network
    Host.page = path.read_bytes().replace(alone, may) + NOTE
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        ThreadingHTTPServer(("127.0.0.1", 0), Host) as host,
    ):
        Thread(target=host.serve_forever, daemon=True).start()
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        command.append(f"http://127.0.0.1:{host.server_port}/")
        shown = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return Host.heard.get(timeout=120)
        finally:
            shown.terminate()
            shown.wait()
            host.shutdown()


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench screen_report", description=__doc__)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="200 candidates, no record")
    args = parser.parse_args(arguments)
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"There is no browser here: none of {', '.join(BROWSERS)}.")
    result: dict[str, Any] = {"candidates": 200 if args.quick else args.candidates}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        path = page(Path(folder), result["candidates"])
        result["write_cpu_s"] = time.process_time() - begin
        result["page_mb"] = path.stat().st_size / 1e6
        times = []
        for _ in range(2 if args.quick else args.rounds):
            times.append(opened(browser, path))
            Host.heard = Queue()
    result |= {"open_s": times, "open_s_median": statistics.median(times), "open_s_min": min(times)}
    print(
        f"{result['candidates']} rows, {result['page_mb']:.1f} MB: opened in "
        f"{result['open_s_median']:.2f} s (median), {result['open_s_min']:.2f} s (shortest)"
    )
    if not args.quick:
        print("record:", save("screen_report", {**result, "load_per_core": company()}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
