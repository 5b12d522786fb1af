"""IDMT-SMT-Drums V2: which sessions a loop has, XML against SVL, attacks; and the golden facts of the real annotations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from time import process_time

import polars as pl
import pytest

from beatsight_assets import events
from beatsight_assets.settings import Settings
from beatsight_assets.sources import Reading, Recording, Rejected, Skipped, idmt, ingest
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.sources.idmt_layout import clip, put, svl, xml

BASE = "WaveDrum02_60"
ONSETS = [("0.25", "KD"), ("0.25", "HH"), ("0.5", "SD"), ("0.75", "HH")]
FRAMES = {"KD": [11_025], "SD": [22_050], "HH": [11_025, 33_075]}


def scanned(root: Path) -> dict[str, Recording]:
    return {r.session.session_id: r for r in idmt.scan(root, {}) if isinstance(r, Recording)}


def read(root: Path, recording: Recording) -> Reading:
    found = idmt.read(root, recording, Taxonomy.shipped(), {})
    assert isinstance(found, Reading)
    return found


def write_xml(root: Path, content: bytes = b"") -> str:
    return put(root, f"annotation_xml/{BASE}#MIX.xml", content or xml(BASE, ONSETS))


def write_svl(root: Path, *drums: str, rate: int | str = 44_100) -> list[str]:
    return [put(root, f"annotation_svl/{BASE}#{d}.svl", svl(FRAMES[d], rate)) for d in drums]


@pytest.mark.parametrize(
    ("has_xml", "svls", "audio", "sessions"),
    [
        (True, "", "MIX", ["MIX"]),
        (True, "HH KD SD", "MIX", ["MIX"]),
        (True, "HH KD SD", "MIX HH", ["HH", "MIX"]),
        (True, "HH", "", ["MIX"]),
        (False, "HH KD SD", "MIX", ["HH", "KD", "MIX", "SD"]),
        (False, "HH", "MIX", ["HH"]),
        (False, "HH KD", "KD", ["HH", "KD"]),
        (False, "", "MIX HH", []),
    ],
    ids=[
        "an XML is a mix", "SVLs of a mix with XML are a cross-check", "a channel with audio and SVL is a session", "sessions need no audio",
        "three SVLs are a mix and three channels", "one SVL never makes a mix", "two SVLs never make a mix", "audio alone is nothing",
    ],
)  # fmt: skip
def test_sessions_of_a_loop(tmp_path: Path, has_xml: bool, svls: str, audio: str, sessions: list[str]) -> None:
    """Missing drums would become negatives, so a mix needs an XML or all three SVLs; other audio is `missing-annotation`."""
    if has_xml:
        write_xml(tmp_path)
    write_svl(tmp_path, *svls.split())
    for channel in audio.split():
        put(tmp_path, f"audio/{BASE}#{channel}.wav", clip())
    assert sorted(scanned(tmp_path)) == [f"audio/{BASE}#{c}.wav" for c in sessions]
    refused = {r.path: r.code for r in idmt.scan(tmp_path, {}) if isinstance(r, Rejected)}
    assert refused == {f"audio/{BASE}#{c}.wav": "missing-annotation" for c in audio.split() if c not in sessions}


def test_mix_and_channel(tmp_path: Path) -> None:
    """One group; drum_only and close_mic; a channel knows of its own drum only; hats are unspecified; windows 40/120."""
    write_xml(tmp_path)
    write_svl(tmp_path, "HH")
    for channel in ("MIX", "HH"):
        put(tmp_path, f"audio/{BASE}#{channel}.wav", clip())
    mix, hat = (scanned(tmp_path)[f"audio/{BASE}#{c}.wav"] for c in ("MIX", "HH"))
    assert {mix.session.group_id, hat.session.group_id} == {f"idmt:{BASE}"}
    assert (mix.session.mix_context, hat.session.mix_context) == ("drum_only", "close_mic")
    assert mix.session.context_ms == (40, 120) and mix.facts["kit_family"] == "WaveDrum02"
    both, one = read(tmp_path, mix), read(tmp_path, hat)
    assert both.coverage == ("kick", "snare", "hihat") and one.coverage == ("hihat",)
    assert one.hits.onset_us.tolist() == [250_000, 750_000]
    assert {(v.label, v.variant) for v in both.hits.voices} == {("kick", None), ("snare", None), ("hihat_closed", "unspecified")}
    assert both.issues == {}


def test_three_svls_are_one_mix(tmp_path: Path) -> None:
    """Their onsets together, sorted; times are frames over the sample rate, half up."""
    write_svl(tmp_path, "HH", "KD", "SD", rate=48_000)
    hits = read(tmp_path, scanned(tmp_path)[f"audio/{BASE}#MIX.wav"]).hits
    assert hits.onset_us.tolist() == [229_688, 229_688, 459_375, 689_063]


def test_training_clips_are_out_of_scope(settings: Settings) -> None:
    """`#train` clips have another time line: never a session, never a refusal, always counted."""
    root = settings.layout.raw("idmt_smt_drums_v2")
    write_xml(root)
    for channel in ("MIX", "HH#train", "KD#train", "SD#train"):
        put(root, f"audio/{BASE}#{channel}.wav", clip())
    put(root, "audio/readme.wav", clip())
    report = ingest(settings, "idmt")
    f = report.figures
    assert (f["candidates"], f["used"], f["rejected"], f["out_of_scope"]) == (6, 2, 0, 4) and report.passed
    stored = json.loads(settings.layout.report("ingest", "idmt_smt_drums_v2.json").read_text())
    assert stored["out_of_scope_reasons"] == {"not-listed": 1, "training_clip": 3}


def test_the_xml_wins_and_differences_are_counted(tmp_path: Path) -> None:
    """10 ms apart is one stroke, more is two that nobody confirmed; an unmatched onset counts once."""
    write_xml(tmp_path, xml(BASE, [("0.250000", "HH"), ("0.5", "HH"), ("1.0", "HH"), ("1.2", "KD")]))
    put(tmp_path, f"annotation_svl/{BASE}#HH.svl", svl([11_025 + 441, 22_050 + 442]))
    found = read(tmp_path, scanned(tmp_path)[f"audio/{BASE}#MIX.wav"])
    assert found.issues == {"annotation_disagreement": 3} and len(found.hits) == 4


def test_damaged_events_are_counted(tmp_path: Path) -> None:
    """No time, no number, no instrument: counted; an unknown instrument stays a label."""
    write_xml(tmp_path, xml(BASE, [("x", "HH"), ("-1", "HH"), ("0.5", ""), ("0.6", "KD SD"), ("0.7", "CY"), ("0.8", "SD")]))
    found = read(tmp_path, scanned(tmp_path)[f"audio/{BASE}#MIX.wav"])
    assert found.issues == {"bad_time": 4, "unknown_label": 1}
    assert [found.hits.voices[v].label for v in found.hits.voice.tolist()] == ["CY", "snare"]
    put(tmp_path, "annotation_svl/RealDrum01_01#KD.svl", svl([5, 4]).replace(b'"5"', b'"five"'))
    channel = read(tmp_path, scanned(tmp_path)["audio/RealDrum01_01#KD.wav"])
    assert channel.issues == {"bad_time": 1} and channel.hits.onset_us.tolist() == [91]


LOL = b"".join(b'<!ENTITY l%d "%s">' % (n + 1, b"&l%d;" % n * 10) for n in range(9))
ATTACKS = {
    "billion laughs": b'<!DOCTYPE x [<!ENTITY l0 "lol">' + LOL + b"]><instrumentRecording>&l9;</instrumentRecording>",
    "quadratic blow-up": b'<!DOCTYPE x [<!ENTITY a "'
    + b"a" * 50_000
    + b'">]><instrumentRecording>'
    + b"&a;" * 50_000
    + b"</instrumentRecording>",
    "external entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><instrumentRecording>&e;</instrumentRecording>',
    "parameter entity": b'<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]><instrumentRecording/>',
    "external DTD": b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><instrumentRecording/>',
    "public DTD": b'<!DOCTYPE x PUBLIC "-//a//b" "x.dtd"><instrumentRecording/>',
    "empty internal subset with a notation": b'<!DOCTYPE x [<!NOTATION n SYSTEM "n">]><instrumentRecording/>',
    "undeclared entity": b"<instrumentRecording>&nothing;</instrumentRecording>",
    "depth": b"<instrumentRecording>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</instrumentRecording>",
    "unclosed depth": b"<instrumentRecording>" + b"<a>" * 400_000,
    "another root": b"<sv/>",
    "not closed": b"<instrumentRecording><transcription>",
    "no XML": b"\x00\x01\x02",
    "nothing": b"",
    "unknown encoding": b'<?xml version="1.0" encoding="klingon"?><instrumentRecording/>',
    "multi-byte encoding": b'<?xml version="1.0" encoding="cp949"?><instrumentRecording>\xb0\xa1</instrumentRecording>',
    "wrong bytes": b"<instrumentRecording>\xff\xfe</instrumentRecording>",
    "attribute twice": b'<instrumentRecording a="1" a="2"/>',
    "too large": b"<instrumentRecording>" + b" " * 4_000_000 + b"</instrumentRecording>",
}


@pytest.mark.parametrize("case", list(ATTACKS), ids=str)
def test_attacks_are_refused_fast(tmp_path: Path, case: str) -> None:
    """One refusal, a code of the table, less than a second of processor time, nothing fetched (the socket guard would tell)."""
    path = write_xml(tmp_path, ATTACKS[case] or b" ")
    if not ATTACKS[case]:
        (tmp_path / path).write_bytes(b"")
    recording = scanned(tmp_path)[f"audio/{BASE}#MIX.wav"]
    before = process_time()
    found = idmt.read(tmp_path, recording, Taxonomy.shipped(), {})
    assert process_time() - before < 1.0
    assert isinstance(found, Rejected) and found.path == path
    assert found.code == ("resource-limit" if case == "too large" else "bad-metadata")
    assert "root:" not in found.message


@pytest.mark.parametrize(
    "rate", ["", "44.1", "-44100", "0", "999999", "9" * 400], ids=["empty", "point", "minus", "zero", "huge", "absurd"]
)
def test_a_svl_without_a_rate_is_refused(settings: Settings, rate: str) -> None:
    """Times would be guesses; the mix with its XML stays."""
    root = settings.layout.raw("idmt_smt_drums_v2")
    write_xml(root)
    (path,) = write_svl(root, "HH", rate=rate)
    ingest(settings, "idmt")
    assert pl.read_parquet(settings.layout.quarantine("idmt_smt_drums_v2")).select("path", "code").rows() == [(path, "bad-metadata")]
    assert events.read_events(settings.layout.events("idmt_smt_drums_v2")).height == 3


@pytest.mark.data
def test_golden_real_annotations(shared_data: Path) -> None:
    """86 onsets in 77 events; 41 and 92 SVL points, 22 and 53 past `model@end`; one disagreement; nothing refused."""
    root = shared_data / "idmt_smt_drums_v2"
    found = list(idmt.scan(root, {}))
    assert not [f for f in found if isinstance(f, (Rejected, Skipped))]
    sessions = scanned(root)
    assert sorted(sessions) == ["audio/RealDrum01_00#MIX.wav", "audio/TechnoDrum01_00#HH.wav"]
    readings = {name.split("/")[1].split("_")[0]: read(root, r) for name, r in sessions.items()}
    real, techno = readings["RealDrum01"], readings["TechnoDrum01"]
    frame = events.assemble("idmt_smt_drums_v2", [(r.session, r.hits) for r in (real, techno)], Taxonomy.shipped()).frame
    assert dict(frame.group_by("session_id").len().iter_rows()) == {"audio/RealDrum01_00#MIX.wav": 77, "audio/TechnoDrum01_00#HH.wav": 92}
    rows, n_bad = idmt.read_transcription(root / "annotation_xml/RealDrum01_00#MIX.xml", "x")
    assert (len(rows), n_bad, Counter(word for _, word in rows)) == (86, 0, {"HH": 42, "KD": 23, "SD": 21})
    first = frame.row(0, named=True)
    assert [c["label"] for c in first["components"]] == ["kick", "hihat_closed"]
    assert json.loads(first["extras"])["offsets_us"] == [5_941, 0], "events.md case 12"
    assert frame["onset_time"][:3].to_list() == [0.085850, 0.504310, 0.526080] and rows[-1][0] == 17_226_300
    assert frame["onset_time"][76] == 17.2249
    for base, n, last_us, n_past in (("RealDrum01_00", 41, 16_789_592, 22), ("TechnoDrum01_00", 92, 18_585_510, 53)):
        points, n_bad = idmt.read_points(root / f"annotation_svl/{base}#HH.svl", "x", "HH")
        assert (len(points), n_bad, points[-1][0]) == (n, 0, last_us)
        assert sum(us * 44_100 / 1e6 > 342_475 for us, _ in points) == n_past
    assert points[0][0] == 377_551
    hats = [us for us, word in rows if word == "HH"]
    svl_hats = [us for us, _ in idmt.read_points(root / "annotation_svl/RealDrum01_00#HH.svl", "x", "HH")[0]]
    assert svl_hats[0] == 85_850 and all(min(abs(us - x) for x in hats) <= 11 for us in svl_hats)
    assert real.issues == {"annotation_disagreement": 1} and techno.issues == {}


@pytest.mark.data
def test_golden_ingest(settings: Settings, shared_data: Path) -> None:
    """2 sessions with `audio_absent`, 77 and 92 events, 0 quarantined."""
    settings.layout.raw("idmt_smt_drums_v2").parent.mkdir(parents=True)
    settings.layout.raw("idmt_smt_drums_v2").symlink_to(shared_data / "idmt_smt_drums_v2")
    report = ingest(settings, "idmt")
    assert (report.figures["recordings"], report.figures["events"], report.figures["rejected"]) == (2, 169, 0)
    assert report.facts["issues"]["audio_absent"] == 2 and report.passed
