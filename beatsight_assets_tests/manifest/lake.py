"""A data root with ingested datasets, made without reading any raw file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from beatsight_assets.settings import Settings, load_settings
from beatsight_assets.sources import PROVENANCE_SCHEMA
from beatsight_assets.stages import Outcome, Report, run_stage
from beatsight_assets.verdict import Rule, Verdict


def make_lake(root: Path, names: Mapping[str, str], *, profile: str = "dev") -> Settings:
    """Settings of a root that knows the datasets {source_set: yaml of more fields}; each has a raw folder."""
    lines = ["datasets:"]
    for i, (name, more) in enumerate(names.items()):
        (root / "raw" / name).mkdir(parents=True)
        lines.append(f"  {name}: {{short: s{i}, raw_folder: {name}, module: rendered{', ' + more if more else ''}}}")
    (root / "configs").mkdir()
    (root / "configs" / "datasets.yaml").write_text("\n".join(lines) + "\n")
    return load_settings(root, profile, environ={})


def ingest_frame(
    settings: Settings,
    source_set: str,
    events: pl.DataFrame,
    *,
    green: bool = True,
    audio: Mapping[str, str] | None = None,
    midi: Mapping[str, str] | None = None,
) -> Report:
    """What `ingest` leaves behind for these events: table, provenance, receipt. audio, midi : {session_id: digest}."""
    layout = settings.layout
    rows = [
        {
            "source_set": source_set,
            "session_id": session,
            "group_id": group,
            "hashes": [{"path": path, "sha256": (audio or {})[session], "bytes": 1}] if session in (audio or {}) else [],
            "facts": json.dumps({"midi_content": (midi or {}).get(session)}),
        }
        for session, group, path in events.select("session_id", "group_id", "audio_path")
        .unique(["session_id"], maintain_order=True)
        .iter_rows()
    ]

    def work() -> Outcome:
        settings.store.publish_frame(layout.events(source_set), events.sort("session_id", "onset_time"))
        settings.store.publish_frame(layout.provenance(source_set), pl.DataFrame(rows, schema=PROVENANCE_SCHEMA, orient="row"))
        rule = Rule.at_most("schema", 0.0 if green else 3.0, 0.0)
        return Outcome(
            outputs=[("events", layout.events(source_set), events.height), ("provenance", layout.provenance(source_set), len(rows))],
            verdicts=[Verdict("ingest", (rule,))],
        )

    options = {
        "green": green,
        "audio": dict(audio or {}),
        "midi": dict(midi or {}),
        "ids": events["event_id"].to_list()[:5],
        "rows": events.height,
    }
    return run_stage(settings, "events", partition=source_set, version="1", options=options, parents=(), work=work)
