"""Forms with one file per session: MIDI, Audacity label tracks, Sonic Visualiser layers, and the index that mirdata reads.

Belongs here: names of these files, the tempo map of a session, reading them back. Does not belong here: the bytes of a label track or a
layer (`manifest.forms`) and of a MIDI file (`midi`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from beatsight_assets import events, midi
from beatsight_assets.bundle.plan import canonical_rows
from beatsight_assets.errors import InputError
from beatsight_assets.events import CLOSED_PEDAL, Manifest, hits_with_onsets
from beatsight_assets.interchange.clips import Clips, require_plain_labels
from beatsight_assets.manifest import forms
from beatsight_assets.manifest.integrity import md5_of
from beatsight_assets.stages import Progress
from beatsight_assets.store import Receipt, Store, is_plain_path, printable, read_bytes, read_json
from beatsight_assets.taxonomy import DRUM_MIX, HIHATS_WITH_OPENNESS, Taxonomy

NOTE_MAP = "beatsight_gm"
SAYS_NOTE_MAP = "beatsight note map "  # text event of a file
TICKS_PER_QUARTER = 960
UNKNOWN_VELOCITY = 64  # of a hit without velocity: MIDI has no way to say so
INDEX_VERSION = "1.0"
MAX_BYTES = 1 << 30
SLUG = re.compile(r"[^A-Za-z0-9._-]+")
METER = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")

Hit = tuple[int, str, float | None, float | None]  # onset_us, label, velocity, openness


@dataclass(frozen=True)
class SessionEvents:
    """Events of one session of the bundle, without rows that describe a whole stem."""

    source_set: str
    session_id: str
    events: pl.DataFrame

    @property
    def stem(self) -> str:
        """Path of its file without a suffix: the last part of the session's name, and a digest that tells it from all others."""
        digest = sha256(self.session_id.encode()).hexdigest()[:16]
        return f"{self.source_set}/{SLUG.sub('_', self.session_id.rpartition('/')[2])[:80]}-{digest}"

    @property
    def hits(self) -> list[Hit]:
        """Every hit at its own onset, sorted."""
        found = hits_with_onsets(self.events).select((pl.col("onset_s") * 1e6).round().cast(pl.Int64), "label", "velocity", "openness")
        return sorted(found.iter_rows(), key=lambda h: h[:2])


def sessions(clips: Clips) -> Iterator[SessionEvents]:
    """Sessions that have a clip in the bundle, in the order of its manifest; every event of theirs, also those that became no clip.

    Raises
    ------
    InputError `manifest-changed`; `bad-label`, `bad-bundle` : a name that cannot stand in a file of another program
    """
    key = list(events.SESSION_KEY)
    wanted = pl.concat([t.select(key).unique().collect() for t in clips.tables]).unique()
    for name in wanted["source_set"].unique():
        if not is_plain_path(name) or "/" in name:
            raise InputError(f"dataset {printable(name)[:80]!r} cannot name a folder", code="bad-bundle")
    is_stem = pl.col("components").list.eval(pl.element().struct.field("label") == DRUM_MIX).list.any()
    for piece in clips.manifest().sessions():
        kept = piece.join(wanted, on=key, how="semi", maintain_order="left").filter(~is_stem & (pl.col("components").list.len() > 0))
        require_plain_labels(kept["components"].explode().struct.field("label").unique())
        for (source_set, session_id), rows in kept.group_by(key, maintain_order=True):
            yield SessionEvents(str(source_set), str(session_id), rows)


@dataclass(frozen=True)
class SessionForm:
    """`files(session, clips)` gives {suffix: content} of a session, `check(stem, session, clips)` reads them back."""

    files: Callable[[SessionEvents, Clips], Mapping[str, bytes]]
    check: Callable[[Path, SessionEvents, Clips], bool]

    def write(self, files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
        """The files of every session, and `sessions.json`, which says whose they are and what they cannot say."""
        made: list[Receipt] = []
        told: list[dict[str, Any]] = []
        for session in sessions(clips):
            hits = session.hits
            for suffix, content in self.files(session, clips).items():
                made.append(files.publish(folder / f"{session.stem}{suffix}", content))
            unknown = [[at, label] for at, label, velocity, _ in hits if velocity is None]
            told.append(
                {
                    "file": session.stem,
                    "source_set": session.source_set,
                    "session_id": session.session_id,
                    "hits": len(hits),
                    "unknown_velocity": unknown,
                }
            )
            progress(f"{folder.name}: {len(told):,} sessions")
        if told:
            made.append(files.publish_json(folder / "sessions.json", told))
        return made

    def read(self, folder: Path, clips: Clips) -> Iterator[tuple[str, bool]]:
        """Every session, and whether its files say what its events do."""
        for session in sessions(clips):
            yield session.stem, self.check(folder / session.stem, session, clips)


def to_midi(
    hits: Iterable[Hit],
    taxonomy: Taxonomy,
    note_map: str,
    *,
    tempos: Sequence[tuple[int, int]] = ((0, midi.DEFAULT_US_PER_QUARTER),),
    meters: Sequence[tuple[int, int, int]] = ((0, 4, 4),),
    ticks_per_quarter: int = TICKS_PER_QUARTER,
    text: str | None = None,
) -> bytes:
    """A MIDI file on channel 10 through a note map of ours; CC4 before a hi-hat says how open it is (90 closed, 0 open).

    tempos : (onset_us, us per quarter); meters : (onset_us, numerator, denominator). They place the grid, never the hits.

    Raises
    ------
    InputError `bad-label` : the note map has no note for a label
    midi.MidiError : as `midi.write_midi`
    """
    note_of = {voice.label: number for number, voice in taxonomy.note_map(note_map).items()}
    notes, pedal = [], []
    for onset_us, label, velocity, openness in hits:
        if label not in note_of:
            raise InputError(f"note map {note_map} has no note for {printable(label)[:80]!r}", code="bad-label")
        value = UNKNOWN_VELOCITY if velocity is None else min(max(round(127 * velocity), 1), 127)
        notes.append((onset_us, note_of[label], value))
        if openness is not None and label in HIHATS_WITH_OPENNESS:
            pedal.append((onset_us, round(CLOSED_PEDAL * (1 - openness))))
    return midi.write_midi(notes, pedal=pedal, tempos=tempos, meters=meters, ticks_per_quarter=ticks_per_quarter, text=text)


def tempo_map(session: pl.DataFrame) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """((onset_us, us per quarter), (onset_us, numerator, denominator)) of a session's events, as they change; unknown stays as it was.

    What is in force at the first event that says so is in force from the start; 120 bpm and 4/4 where no event says anything.
    """
    low, high = midi.TEMPO_RANGE_US
    tempos: list[tuple[int, int]] = []
    meters: list[tuple[int, int, int]] = []
    rows = session.sort("onset_time").select((pl.col("onset_time") * 1e6).round().cast(pl.Int64), "tempo_bpm", "meter")
    for onset_us, bpm, meter in rows.iter_rows():
        if bpm is not None and bpm > 0:
            us = min(max(round(60e6 / bpm), low), high)
            if not tempos or tempos[-1][1] != us:
                tempos.append((onset_us if tempos else 0, us))
        found = METER.fullmatch(meter or "")
        if found is not None and 0 < int(found[1]) < 256 and int(found[2]) in [1 << n for n in range(midi.MAX_METER_POWER + 1)]:
            stated = (int(found[1]), int(found[2]))
            if not meters or meters[-1][1:] != stated:
                meters.append((onset_us if meters else 0, *stated))
    return tempos or [(0, midi.DEFAULT_US_PER_QUARTER)], meters or [(0, 4, 4)]


def _midi_files(session: SessionEvents, clips: Clips) -> dict[str, bytes]:
    tempos, meters = tempo_map(session.events)
    return {".mid": to_midi(session.hits, clips.taxonomy, NOTE_MAP, tempos=tempos, meters=meters, text=SAYS_NOTE_MAP + NOTE_MAP)}


def _check_midi(stem: Path, session: SessionEvents, clips: Clips) -> bool:
    """Components equal, every onset within one tick, every velocity within 1/127."""
    file = midi.read_midi(read_bytes(stem.with_name(stem.name + ".mid"), max_bytes=MAX_BYTES))
    names = [text.removeprefix(SAYS_NOTE_MAP) for text in file.texts if text.startswith(SAYS_NOTE_MAP)]
    notes = clips.taxonomy.note_map(names[0]) if names else {}
    found = sorted(
        (notes[n].label if n in notes else "", at, v)
        for n, at, v in zip(file.notes.note.tolist(), file.notes.onset_us.tolist(), file.notes.velocity.tolist(), strict=True)
    )
    due = sorted((label, at, UNKNOWN_VELOCITY / 127 if velocity is None else velocity) for at, label, velocity, _ in session.hits)
    tick_us = max(us for _, us in tempo_map(session.events)[0]) / TICKS_PER_QUARTER
    return len(found) == len(due) and all(
        a == b and abs(s - t) <= tick_us and abs(v / 127 - w) <= 1 / 127 for (a, s, v), (b, t, w) in zip(found, due, strict=True)
    )


def _check_audacity(stem: Path, session: SessionEvents, clips: Clips) -> bool:
    content = read_bytes(stem.with_name(stem.name + ".txt"), max_bytes=MAX_BYTES)
    found = [(at, voice.label) for at, voice in forms.read_label_track(content, clips.taxonomy)]
    return found == sorted((at, _canonical(label, clips)) for at, label, *_ in session.hits)


def _svl_files(session: SessionEvents, clips: Clips) -> dict[str, bytes]:
    return {f"/{label}.svl": content for label, content in forms.to_svl(session.events, clips.sample_rate).items()}


def _check_svl(stem: Path, session: SessionEvents, clips: Clips) -> bool:
    rate = clips.sample_rate
    found = [(round(at * rate / 1e6), voice.label) for at, voice in forms.read_svl(stem, clips.taxonomy)]
    return sorted(found) == sorted(((2 * at * rate + 1_000_000) // 2_000_000, _canonical(label, clips)) for at, label, *_ in session.hits)


def _canonical(label: str, clips: Clips) -> str:
    return (clips.taxonomy.canonical(label) or (label, None))[0]


def _events_files(session: SessionEvents, clips: Clips) -> dict[str, bytes]:
    return {".jsonl": events.to_jsonl(session.events)}


def _check_events(stem: Path, session: SessionEvents, clips: Clips) -> bool:
    """What is read says the same when it is written again; JSONL rounds velocities to the digits that matter."""
    return events.to_jsonl(Manifest(stem.with_name(stem.name + ".jsonl")).read()) == events.to_jsonl(session.events)


MIDI = SessionForm(_midi_files, _check_midi)
AUDACITY = SessionForm(lambda session, _: {".txt": forms.to_audacity(session.events)}, _check_audacity)
SVL = SessionForm(_svl_files, _check_svl)
EVENTS = SessionForm(_events_files, _check_events)


def write_jsonl(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`events.jsonl`: every row of the manifest, in its order."""
    manifest = clips.manifest()
    progress(f"jsonl: {manifest.n_rows:,} events")
    target = folder / "events.jsonl"
    return forms.export(files, target, manifest, "jsonl", list(events.EVENT_SCHEMA), None, clips.sample_rate) if manifest.n_rows else []


def read_jsonl(folder: Path, clips: Clips) -> Iterator[tuple[str, bool]]:
    """Every event in its place, and whether it is the one of the manifest (canonical rows, as the digest of a manifest compares them)."""
    found, due = Manifest(folder / "events.jsonl"), clips.manifest()
    if found.n_rows != due.n_rows:
        yield "events.jsonl", False
        return
    for ours, theirs in zip(due.pieces(), found.pieces(), strict=True):
        yield from zip(ours["event_id"], canonical_rows(ours) == canonical_rows(theirs), strict=True)


def write_index(files: Store, folder: Path, clips: Clips, progress: Progress) -> list[Receipt]:
    """`index.json` of mirdata over sessions: their audio and their events with md5, paths relative to the data root.

    A recording that lies elsewhere than below the data root has no path, as mirdata writes it: [null, null].
    """
    made = EVENTS.write(files, folder, clips, progress)
    tracks: dict[str, Any] = {}
    for session in sessions(clips):
        audio = clips.find_audio(session.source_set, session.events["audio_path"][0])
        named = audio is not None and audio.is_relative_to(clips.root)
        track = {
            "audio": [audio.relative_to(clips.root).as_posix(), md5_of(audio)] if audio is not None and named else [None, None],
            "events": _entry(folder / f"{session.stem}.jsonl", clips.root),
        }
        tracks[session.stem] = track
        progress(f"mirdata-index: {len(tracks):,} sessions indexed")
    if tracks:
        index = {"version": INDEX_VERSION, "tracks": tracks, "metadata": {"sessions": _entry(folder / "sessions.json", clips.root)}}
        made.append(files.publish_json(folder / "index.json", index))
    return made


def read_index(folder: Path, clips: Clips) -> Iterator[tuple[str, bool]]:
    """Every session, and whether the index names its files with their md5 and its events say what the manifest does."""
    index = read_json(folder / "index.json")
    for session in sessions(clips):
        track = index["tracks"].get(session.stem, {})
        sound = all(path is None or md5_of(clips.root / path) == digest for path, digest in track.values())
        yield session.stem, len(track) == 2 and sound and _check_events(folder / session.stem, session, clips)


def _entry(path: Path, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix(), md5_of(path)]
