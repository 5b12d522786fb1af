"""The pages that people open, in a real browser on the real development server. The PNGs go to out/ui; nothing compares pixels."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beatsight_assets_tests.e2e.conftest import Done, copy_of

CHROMIUM = os.environ.get("BEATSIGHT_CHROMIUM") or shutil.which("chromium")
PORTS = range(23_200, 23_300)  # below those that the kernel gives to whoever connects, so that a free one stays free
LIMIT_S = 240.0  # only what is broken takes so long; a machine may be shared and slow
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PICTURES = Path(__file__).parents[2] / "out" / "ui"
PAGES = {
    "lineage": ("/asset-groups", ["raw", "ingest", "manifest", "health", "sampling", "features", "training", "readiness", "promotion"]),
    "events_partitions": ("/assets/events?view=partitions", ["beatsight_demo", "groove_mididataset", "mdb_drums"]),
    "events_checks": ("/assets/events?view=checks", ["schema", "event_ids_unique", "labels_known", "provenance_complete", "accounted"]),
    "events": ("/assets/events?view=overview", ["onset_time", "verdict ingest", "hits by component", "chart_full"]),
    "merged_manifest": (
        "/assets/merged_manifest?view=overview",
        ["Row count", "verdict merge", "beatsight_demo", "manifest/merged.parquet"],
    ),
    "manifest_health": (
        "/assets/manifest_health?view=checks&checkDetail=class_counts",
        [
            "class_counts",
            "duplication_rate",
            "Every class has enough hits",
            "nearest to its limit",
            "min_class_count[kick] · value",
            "Plots",
        ],
    ),
    "readiness": (
        "/assets/readiness?view=checks&checkDetail=openset",
        ["alignment", "boundary", "openset", "bootstrap", "calibration", "blocking"],
    ),
    "promoted_model": ("/assets/promoted_model?view=overview", ["promotion", "Guard G3", "PyTorch"]),
}
HEALTH_QUERY = """{
 workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } }
 instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH and BEATSIGHT_CHROMIUM is not set"),
]


def ask(base: str, query: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{base}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        data: dict[str, Any] = json.load(answer)["data"]
        return data


def is_ready(base: str) -> bool:
    """The location is loaded and every required daemon is healthy."""
    try:
        found = ask(base, HEALTH_QUERY)
    except OSError:
        return False
    entries = found["workspaceOrError"]["locationEntries"]
    daemons = [d for d in found["instance"]["daemonHealth"]["allDaemonStatuses"] if d["required"]]
    loaded = [(e["name"], (e["locationOrLoadError"] or {}).get("__typename")) for e in entries if e["loadStatus"] == "LOADED"]
    return loaded == [("beatsight_assets", "RepositoryLocation")] and bool(daemons) and all(d["healthy"] for d in daemons)


def is_free(port: int) -> bool:
    """Nobody listens there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def server(demo: tuple[Path, Done], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`beatsight dev` on a free port, over a copy of the finished demo: its daemons write, and other tests copy the demo meanwhile."""
    port = next(p for p in PORTS if is_free(p))
    folder = tmp_path_factory.mktemp("dev")
    root, log = copy_of(demo[0], folder / "data"), folder / "dev.log"
    command = [sys.executable, "-m", "beatsight_assets", "--data-root", str(root), "--profile", "demo", "dev", "--port", str(port)]
    base = f"http://127.0.0.1:{port}"
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
        try:
            deadline = time.monotonic() + LIMIT_S
            while not is_ready(base):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4_000:]
                process_wait(process, 0.5)
            yield base
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def process_wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end of a process, at most so long: a poll that wakes at once when the server dies."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def test_pages(server: str) -> None:
    """Every page that a person opens shows its names, draws its chart, asks nobody outside this machine, and pops up nothing.

    Longer than ten seconds: a real server, its daemons and a real browser.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    PICTURES.mkdir(parents=True, exist_ok=True)
    asked: list[str] = []
    failed: list[str] = []
    dialogs: list[str] = []
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1600})
        page.set_default_timeout(LIMIT_S * 1_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: failed.append(f"{request.failure} {request.url}"))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for name, (path, texts) in PAGES.items():
            page.goto(server + path)
            for text in texts:
                page.get_by_text(text).first.wait_for()
            page.wait_for_load_state("networkidle")
            assert page.locator("[role=dialog]").count() == 0, f"{name} opens a dialog"
            page.screenshot(path=PICTURES / f"{name}.png")
            if name == "events":
                charts = page.locator("img[src^='data:image/svg+xml']")
                charts.first.wait_for()
                assert charts.first.evaluate("image => image.naturalWidth") > 0
                page.locator("text=[Show Markdown]").first.click()
                page.locator("[role=dialog] img[src^='data:image/svg+xml']").first.wait_for()
                page.wait_for_function(
                    "() => [...document.querySelectorAll('[role=dialog]')].every(d => !d.getAnimations({subtree: true}).length)"
                )
                page.screenshot(path=PICTURES / "chart_full.png")
        browser.close()
    outside = [url for url in asked if not url.startswith((server, "data:", "blob:"))]
    assert (outside, dialogs) == ([], [])
    assert [f for f in failed if "ERR_ABORTED" not in f] == []  # leaving a page aborts what it still asks
    assert (PICTURES / "lineage.png").stat().st_size > 10_000
