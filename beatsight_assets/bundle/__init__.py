"""Bundles: training clips cut from the audio of manifest rows, in a folder that survives being killed.

Belongs here: which events become clips (`plan`), cutting them (`cut`, `shard`), doing it again after a kill (`export`), totals (`seal`),
proofs (`check`), what it would take (`verify`), reading it (`read`). Does not belong here: Dagster, torch, features, interchange formats.

Folder `bundles/<name>/`
    plan.json              identity: digests of manifest, splits, coverage and taxonomy, content options, versions; counts
    plan/<NN>.parquet      planned clips of shard NN, sorted by (split, source_set, audio_path, session_id, onset, event_id)
    shards/<NN>/<split>-0000.pcm   layout `shards`: int16 little-endian mono samples, clips back to back, no header, 4,096 clips a part
    shards/<NN>/clips.parquet      one row per written clip in the order of the plan, `CLIPS_SCHEMA`
    shards/<NN>/SHARD.json         digests of the files above, what fell out and why, audio used; a shard without it is done again
    <split>/audio/<xx>/<clip>.wav  layout `wav`: 16-bit PCM, 44-byte header; xx = first two characters of the clip id
    <split>/<split>_labels.json    layout `wav`: a JSON list sorted by file
    components.json, splits.json, metadata.json    made by the seal from what is on disk
    BUNDLE.json            last: {schema, name, layout, plan_sha256, content_sha256, clips, seconds, shards, complete}
    history/run-0001.json  what one invocation did; no content
    history/request.json   written before the plan: what was asked for, and then a second copy of plan.json; no content

NN = first 8 bytes of blake2b over `<source_set>/<audio_path>`, big-endian, mod the number of shards, two digits or more.
A clip's samples depend on the audio, the onset and the content options alone. Readers open a folder only through `read.open_bundle`,
which wants BUNDLE.json and the plan it names.
"""
