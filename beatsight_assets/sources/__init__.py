"""Reading datasets: one module per dataset says what is there and what it means; `ingest` does everything else.

A source module has, in this order: a docstring (layout, labels, group, traps), `SOURCE`, its tables, `scan`, `read`.

    scan(root, options) -> Iterator[Recording | Rejected | Skipped]   which recordings there are; reads tables, not takes
    read(root, recording, taxonomy, options) -> Reading | Rejected   one take's hits and facts

A module may also have `read_many(root, recordings, taxonomy, options)`: readings of many recordings in their order, an exception in the place
of one that cannot be read. Then `read` is that of one.

A module of multitrack sessions may also have `session_folder(path, rules)`: its ingest then writes an inventory (`inventory`).

`read` opens the recording's own `files`, and no other candidate (file with one of `SOURCE.suffixes`). A change of any other file has
every recording read again, so files that only `scan` reads stand in `SOURCE.tables`. Walking, hashing, workers, batching, quarantine, publishing and the report are shared
(`pipeline`). Adding a dataset is one module, one entry in configs/datasets.yaml and its tests.
"""

from __future__ import annotations

from beatsight_assets.sources.pipeline import (
    PROVENANCE_SCHEMA,
    QUARANTINE_SCHEMA,
    VERSION,
    ingest,
    module_options,
    read_state,
    scan,
    source_module,
    take_inventory,
)
from beatsight_assets.sources.trees import (
    IGNORED_NAMES,
    IGNORED_SUFFIXES,
    candidate_files,
    find_root,
    find_roots,
    listing_digest,
)
from beatsight_assets.sources.types import (
    AUDIO_SUFFIXES,
    MIDI_SUFFIXES,
    Reading,
    Recording,
    Rejected,
    Skipped,
    Source,
    SourceModule,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "IGNORED_NAMES",
    "IGNORED_SUFFIXES",
    "MIDI_SUFFIXES",
    "PROVENANCE_SCHEMA",
    "QUARANTINE_SCHEMA",
    "VERSION",
    "Reading",
    "Recording",
    "Rejected",
    "Skipped",
    "Source",
    "SourceModule",
    "candidate_files",
    "find_root",
    "find_roots",
    "ingest",
    "listing_digest",
    "module_options",
    "read_state",
    "scan",
    "source_module",
    "take_inventory",
]
