"""ENST-Drums: tokens per drummer, channels, techniques; and the golden facts of the real technique files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beatsight_assets import events
from beatsight_assets.errors import ConfigError, NothingToDo
from beatsight_assets.manifest.techniques import with_techniques
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.sources import Reading, Recording, Rejected, Skipped, enst, ingest
from beatsight_assets.taxonomy import Taxonomy
from beatsight_assets_tests.sources.enst_layout import PIECES, PUBLIC, annotation, techniques, write_enst, write_piece

SHIPPED = Settings(layout=DataLayout(Path("/nowhere"))).datasets["enst_drums"].options
BEAT = [(0.5, "bd"), (0.5, "chh"), (0.75, "sd"), (1.0, "c4"), (1.25, "rs")]
ROCKNROLL = "137_MIDI-minus-one_rock'n'roll-188_sticks"
SALSA = "107_minus-one_salsa_sticks"


def put(root: Path, name: str, content: bytes) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def scanned(root: Path, options: Mapping[str, Any] = SHIPPED) -> list[Recording]:
    return [r for r in enst.scan(root, options) if isinstance(r, Recording)]


def read_one(root: Path, recording: Recording | None = None, options: Mapping[str, Any] = SHIPPED) -> Reading:
    reading = enst.read(root, recording or scanned(root, options)[0], Taxonomy.shipped(), options)
    assert isinstance(reading, Reading)
    return reading


def labels(reading: Reading) -> list[str]:
    return [reading.hits.voices[v].label for v in reading.hits.voice.tolist()]


def test_a_session_is_the_wet_mix_of_a_piece(tmp_path: Path) -> None:
    """Names with apostrophes and `#`-free paths stay as they are; group, fold, drummer, implement and windows follow the spec."""
    write_enst(tmp_path, dict.fromkeys(PIECES, BEAT))
    found = {r.session.session_id: r for r in scanned(tmp_path)}
    assert len(found) == 7
    one = found[f"{PUBLIC}/drummer_2/audio/wet_mix/{ROCKNROLL}.wav"]
    assert (one.session.group_id, one.session.drummer_id) == (f"enst:drummer_2/{ROCKNROLL}", "enst:drummer_2")
    assert (one.facts["implement"], one.facts["fold"], one.facts["kind"]) == ("sticks", "enst:drummer_2", "MIDI-minus-one")
    assert (one.session.context_ms, one.session.mix_context, one.session.label_source, one.session.confidence) == (
        (60, 120),
        "drum_only",
        "human",
        0.95,
    )
    assert one.session.split_hint is None and one.session.audio_path == one.session.session_id
    assert Counter(r.facts["implement"] for r in found.values()) == {"sticks": 5, "brushes": 1, "mallets": 1}
    skipped = Counter(s.reason for s in enst.scan(tmp_path, SHIPPED) if isinstance(s, Skipped))
    assert skipped == {"other_mix": 7, "accompaniment": 4, "mic_channel": 3 * 7 + 4 * 8}


def test_the_dry_mix_is_a_second_session_of_the_same_group(tmp_path: Path) -> None:
    """`mix: dry_mix` adds it; a piece of which only the dry mix is there is read from it anyway."""
    write_piece(tmp_path, "drummer_1", SALSA, BEAT)
    wet, dry = scanned(tmp_path, {**SHIPPED, "mix": "dry_mix"})
    assert (wet.session.group_id, wet.facts["channel"], dry.facts["channel"]) == (dry.session.group_id, "wet_mix", "dry_mix")
    (tmp_path / str(wet.session.audio_path)).unlink()
    (only,) = scanned(tmp_path)
    assert only.facts["channel"] == "dry_mix" and only.session.audio_path in only.files
    with pytest.raises(ConfigError, match="mix"):
        list(enst.scan(tmp_path, {**SHIPPED, "mix": "moist_mix"}))


def test_every_token_of_the_spec_has_its_component() -> None:
    """The table of events.md section 8, with the one difference of drummer_3; sweep is no event."""
    shown = {}
    for drummer in ("drummer_1", "drummer_3"):
        table, name = enst._token_table(SHIPPED, drummer)
        shown[drummer] = {t: None if v is None else (v.label, v.variant, v.strike) for t, v in table.items()}
        assert name == ("enst:default" if drummer == "drummer_1" else "enst:default+drummer_3")
    first = shown["drummer_1"]
    plain = {
        "kick": "bd", "snare": "sd", "rimshot": "rs", "cross_stick": "cs", "hihat_closed": "chh", "hihat_open": "ohh", "tom_mid": "mt lmt",
        "tom_low": "lt lft", "crash": "cr c1 cr1", "crash2": "c cr2 c4", "ride_bow": "rc rc1 rc3", "china": "ch ch1 ch5", "splash": "spl spl2",
        "cowbell": "cb",
    }  # fmt: skip
    expected: dict[str, Any] = {token: (label, None, None) for label, tokens in plain.items() for token in tokens.split()}
    expected |= {
        "sd-": ("snare", "snares_off", None), "mtr": ("tom_mid", None, "rim"), "ltr": ("tom_low", None, "rim"), "cr5": ("crash", "crash_5", None),
        "rc2": ("ride_bow", "ride_2", None), "rc4": ("ride_bow", "ride_2", None), "sticks": ("aux_percussion", "sticks", None), "sweep": None,
    }  # fmt: skip
    assert first == expected
    assert {t for t in first if first[t] != shown["drummer_3"][t]} == {"c4"} and shown["drummer_3"]["c4"] == ("ride_bow", None, None)


def test_tokens_are_those_of_the_drummer(tmp_path: Path) -> None:
    """c4 is the second crash of drummer 1 and a ride of drummer 3; the provenance names the table."""
    write_piece(tmp_path, "drummer_1", SALSA, BEAT, channels=())
    write_piece(tmp_path, "drummer_3", "128_minus-one_rock-60s_sticks", BEAT, channels=())
    first, third = (read_one(tmp_path, r) for r in scanned(tmp_path))
    assert labels(first) == ["kick", "hihat_closed", "snare", "crash2", "rimshot"] and first.note_map == "enst:default"
    assert labels(third) == ["kick", "hihat_closed", "snare", "ride_bow", "rimshot"] and third.note_map == "enst:default+drummer_3"
    assert "crash2" in third.coverage and "ride_bell" not in third.coverage and "hihat_pedal" not in third.coverage


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    """Bad lines, unknown tokens and sweeps are counted; an unknown token stays a label."""
    path = write_piece(tmp_path, "drummer_1", SALSA, [(0.5, "bd"), (0.6, "sweep"), (0.7, "zzz"), (0.9, "sd-")], channels=())
    with (tmp_path / path).open("ab") as file:
        file.write(b"x bd\r\n1.0\r\n-1 sd\r\n1.0 bd extra\r\n\r\n86400 bd\n")
    reading = read_one(tmp_path)
    assert reading.issues == {"bad_time": 5, "unknown_label": 1, "ignored_label": 1}
    assert labels(reading) == ["kick", "zzz", "snare"] and reading.hits.voices[2].techniques == ("snares_off",)


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        {},
        {"default": []},
        {"default": {"bd": "kick"}},
        {"default": {"bd": {"label": 3}}},
        {"default": {"bd": {"label": "kick", "lable": "x"}}},
    ],
    ids=["absent", "empty", "a list", "a bare word", "a number", "a misspelt key"],
)
def test_a_wrong_token_table_is_a_config_error(tmp_path: Path, tokens: object) -> None:
    """Exit 2 before anything is read, and the message names the file."""
    with pytest.raises(ConfigError, match=r"datasets\.yaml") as caught:
        list(enst.scan(tmp_path, {"tokens": tokens}))
    assert caught.value.code == "bad-config"


def test_techniques_tag_the_snare_events_inside(tmp_path: Path) -> None:
    """From 10 ms before the start to its end, both included, by the time of the event; kicks alone are left as they are."""
    onsets = [(0.489999, "sd"), (0.51, "sd"), (0.6, "bd"), (0.7, "bd"), (0.705, "sd"), (0.800001, "sd"), (1.0, "rs")]
    write_piece(tmp_path, "drummer_1", SALSA, onsets, channels=())
    put(tmp_path, "Testing_set/drummer_1/107_min.txt", techniques([(0.5, 2, 0.3, "roll"), (0.95, 3, 0.1, "drag")]) + b"no line\n")
    recording = scanned(tmp_path)[0]
    assert "Testing_set/drummer_1/107_min.txt" in recording.files
    reading = read_one(tmp_path, recording)
    frame = events.assemble("enst_drums", [(reading.session, reading.hits)], Taxonomy.shipped()).frame
    assert frame["techniques"].to_list() == [[], ["roll"], [], ["roll"], [], ["drag"]]
    assert reading.facts["techniques"] == {"drag": 1, "roll": 1} and reading.issues == {"bad_value": 1}
    assert json.loads(frame["extras"][0])["annotation_history"] == ["snare_strokes"]


def test_a_technique_outside_the_catalogue_breaks_the_schema(settings: Settings) -> None:
    """`--techniques-file`: the rule `schema` names the technique and its events; the configured catalogue knows what ENST says."""
    root = settings.layout.raw("enst_drums")
    write_piece(root, "drummer_1", SALSA, [(0.51, "sd"), (0.7, "sd"), (2.0, "bd")], channels=())
    put(root, "Testing_set/drummer_1/107_min.txt", techniques([(0.5, 2, 0.3, "roll")]))
    rules = []
    for names in (None, ["drag", "flam"]):
        verdict = ingest(settings, "enst", technique_names=names).verdict("ingest")
        assert verdict is not None
        rules.append(verdict.rule("schema"))
    known, unknown = rules
    assert known is not None and known.passed
    assert unknown is not None and not unknown.passed and unknown.value == 2.0 and "technique roll of 2 events" in unknown.detail


@pytest.mark.parametrize(
    ("onsets", "is_tagged"),
    [
        ([(0.49, "sd")], True), ([(0.489999, "sd")], False), ([(0.8, "sd")], True), ([(0.800001, "sd")], False),
        ([(0.485, "bd"), (0.494, "sd")], False), ([(0.798, "bd"), (0.806, "sd")], True), ([(0.6, "bd")], False), ([(0.6, "cs")], True),
    ],
    ids=[
        "10 ms before", "just too early", "at the end", "just too late", "an event that opens too early", "an event that opens in time",
        "no snare", "cross stick is a snare",
    ],
)  # fmt: skip
def test_the_edges_of_a_technique(tmp_path: Path, onsets: list[tuple[float, str]], is_tagged: bool) -> None:
    """[start - 10 ms, start + duration], both ends included, by the time of the event and not of the single hit."""
    write_piece(tmp_path, "drummer_1", SALSA, onsets, channels=())
    put(tmp_path, "Testing_set/drummer_1/107_min.txt", techniques([(0.5, 2, 0.3, "roll")]))
    reading = read_one(tmp_path)
    frame = events.assemble("enst_drums", [(reading.session, reading.hits)], Taxonomy.shipped()).frame
    assert frame["techniques"].to_list() == [["roll"] if is_tagged else []]


def test_annotation_beats_inference_inside_annotated_pieces(tmp_path: Path) -> None:
    """Six snare strokes 50 ms apart are a roll where nobody marked techniques; where somebody did, only what they marked is one. Toms stay."""
    onsets = [(0.5 + 0.05 * i, token) for token in ("sd", "lt") for i in range(6)]
    for n, piece in enumerate(("107_minus-one_salsa_sticks", "108_minus-one_salsa_sticks")):
        write_piece(tmp_path, "drummer_1", piece, sorted(onsets), channels=())
        if n == 0:
            put(tmp_path, "Testing_set/drummer_1/107_min.txt", techniques([(0.5, 1, 0.0, "drag")]))
    readings = [read_one(tmp_path, r) for r in scanned(tmp_path)]
    frame = with_techniques(events.assemble("enst_drums", [(r.session, r.hits) for r in readings], Taxonomy.shipped()).frame)
    assert frame["techniques"].to_list()[:6] == [["drag", "roll"]] + [["roll"]] * 5, "the toms roll"
    snares = frame.filter(pl.col("components").list.eval(pl.element().struct.field("label") == "tom_low").list.any())
    assert snares.height == 12
    write_piece(tmp_path, "drummer_1", "107_minus-one_salsa_sticks", [o for o in onsets if o[1] == "sd"], channels=())
    marked = read_one(tmp_path)
    frame = with_techniques(events.assemble("enst_drums", [(marked.session, marked.hits)], Taxonomy.shipped()).frame)
    assert frame["techniques"].to_list() == [["drag"]] + [[]] * 5
    assert with_techniques(frame, recompute=True).equals(frame), "taking inferred tags off leaves what a person marked"


def test_techniques_beside_the_dataset_count_too(tmp_path: Path) -> None:
    """`../enst_drums_techniques` is a companion: the same file works from there, and a damaged one costs a count, not the piece."""
    root = tmp_path / "enst_drums"
    write_piece(root, "drummer_2", ROCKNROLL, BEAT, channels=())
    put(tmp_path, "enst_drums_techniques/Testing_set/drummer_2/137_MID.txt", techniques([(0.7, 3, 0.2, "flam")]))
    assert read_one(root).hits.stated == {2: ("flam",)}
    put(tmp_path, "enst_drums_techniques/Testing_set/drummer_2/137_MID.txt", b"\xff\xfe")
    assert read_one(root).issues == {"bad_value": 1}


def test_microphone_channels_are_stem_rows_when_asked_for(tmp_path: Path) -> None:
    """Inventory, in the same group, with the position in extras; accompaniment never."""
    write_piece(tmp_path, "drummer_2", ROCKNROLL, BEAT)
    options = {**SHIPPED, "include_channels": True}
    stems = [r for r in scanned(tmp_path, options) if r.facts["channel"] not in enst.MIXES]
    assert sorted(r.facts["channel"] for r in stems) == sorted(enst.CHANNELS)
    readings = {str(r.facts["channel"]): read_one(tmp_path, r, options) for r in stems}
    assert {c: labels(r) for c, r in readings.items()} == {
        "kick": ["kick"], "snare": ["snare"], "hi-hat": ["hihat_closed"], "overhead_L": ["drum_mix"], "overhead_R": ["drum_mix"],
        "tom_1": ["tom_high"], "tom_2": ["tom_mid"], "tom_3": ["tom_low"],
    }  # fmt: skip
    left = readings["overhead_L"].session
    assert (left.mix_context, left.context_ms, left.extras["mic_position"]) == ("stem", (0.0, 0.0), "overhead_l")
    assert {r.session.group_id for r in readings.values()} == {f"enst:drummer_2/{ROCKNROLL}"}


def test_ingest_accounts_for_every_file(settings: Settings) -> None:
    """Used, refused and out of scope add up; a piece without a mix stays as `audio_absent`; each damaged file is one row."""
    root = settings.layout.raw("enst_drums")
    write_piece(root, "drummer_1", SALSA, BEAT)
    absent = write_piece(root, "drummer_2", ROCKNROLL, BEAT, channels=("kick",))
    empty = write_piece(root, "drummer_3", "036_phrase_afro_complex_slow_mallets", [(0.5, "sweep")], channels=("wet_mix",))
    broken = write_piece(root, "drummer_3", "128_minus-one_rock-60s_sticks", BEAT, channels=("wet_mix", "dry_mix"))
    (root / broken).write_bytes(b"\xff\xfe" + annotation(BEAT))
    lonely = f"{PUBLIC}/drummer_3/audio/wet_mix/001_hits_bass-drum_pedal_x6.wav"
    put(root, lonely, (root / f"{PUBLIC}/drummer_1/audio/wet_mix/{SALSA}.wav").read_bytes())
    strokes = put(root, "Testing_set/drummer_1/107_min.txt", b"\xff")
    put(root, "Testing_set/drummer_1/999_min.txt", techniques([(1.0, 1, 0.1, "drag")]))
    put(root, "Testing_set/README.txt", b"hello")
    report = ingest(settings, "enst")
    refused = pl.read_parquet(settings.layout.quarantine("enst_drums"))
    assert dict(refused.select("path", "code").iter_rows()) == {
        empty: "no-events", broken: "bad-encoding", lonely: "missing-annotation", strokes: "bad-encoding"
    }  # fmt: skip
    f = report.figures
    assert f["candidates"] == f["used"] + f["rejected"] + f["absent"] + f["out_of_scope"] and f["recordings"] == 2
    stored = json.loads(settings.layout.report("ingest", "enst_drums.json").read_text())
    assert stored["issues"]["audio_absent"] == 1 and stored["out_of_scope_reasons"]["techniques_of_no_piece"] == 1
    provenance = pl.read_parquet(settings.layout.provenance("enst_drums"))
    assert provenance["note_map"].to_list() == ["enst:default", "enst:default"] and absent in provenance["sample_paths"].explode().to_list()
    frame = events.read_events(settings.layout.events("enst_drums"))
    assert not sum(events.find_violations(frame, Taxonomy.shipped())[0].values())


def test_the_same_bytes_whatever_the_workers(settings: Settings, tmp_path: Path) -> None:
    """Two processes give the digest of one."""
    root = settings.layout.raw("enst_drums")
    for n in range(3):
        write_piece(root, "drummer_1", f"10{n}_minus-one_salsa_sticks", BEAT, channels=())
    first = ingest(settings, "enst").digest
    assert first == ingest(Settings(layout=settings.layout, profile="demo", executor="processes", n_workers=2), "enst").digest


@pytest.mark.data
def test_golden_techniques(shared_data: Path) -> None:
    """30 files, 182 annotations: roll 109, drag 47, flam 26; 11, 122 and 49 by drummer; no bad line."""
    by_name: Counter[str] = Counter()
    by_drummer: Counter[str] = Counter()
    files = sorted((shared_data / "enst_drums_techniques").rglob("drummer_*/*.txt"))
    for path in files:
        strokes, n_bad = enst.read_strokes(path, path.name)
        assert n_bad == 0 and all(s.end_us > s.start_us for s in strokes)
        by_name.update(s.name for s in strokes)
        by_drummer[path.parent.name] += len(strokes)
    assert (len(files), by_name) == (30, {"roll": 109, "drag": 47, "flam": 26})
    assert by_drummer == {"drummer_1": 11, "drummer_2": 122, "drummer_3": 49}


@pytest.mark.data
def test_golden_techniques_find_their_pieces(shared_data: Path, tmp_path: Path) -> None:
    """On pieces made for the real files every one of the 182 spans with a snare stroke at its start tags it."""
    (tmp_path / "enst_drums_techniques").symlink_to(shared_data / "enst_drums_techniques")
    root, n_tags = tmp_path / "enst_drums", 0
    for path in sorted((shared_data / "enst_drums_techniques").rglob("drummer_*/*.txt")):
        number, kind = path.stem.split("_")
        strokes, _ = enst.read_strokes(path, path.name)
        piece = f"{number}_{'minus-one' if kind == 'min' else 'MIDI-minus-one'}_x_sticks"
        write_piece(root, path.parent.name, piece, sorted({(s.start_us / 1e6, "sd") for s in strokes}), channels=())
    for recording in scanned(root):
        n_tags += sum(len(names) for names in read_one(root, recording).hits.stated.values())
    assert n_tags >= 182


@pytest.mark.data
def test_golden_root_without_onsets(settings: Settings, shared_data: Path) -> None:
    """The technique folder as an ENST root holds nothing to ingest: exit 1."""
    settings.layout.raw("enst_drums").parent.mkdir(parents=True)
    settings.layout.raw("enst_drums").symlink_to(shared_data / "enst_drums_techniques")
    assert [f for f in enst.scan(settings.layout.raw("enst_drums"), SHIPPED) if not isinstance(f, Skipped)] == []
    with pytest.raises(NothingToDo) as caught:
        ingest(settings, "enst")
    assert (caught.value.exit_code, caught.value.code) == (1, "no-recordings")


def test_refusals_are_values(tmp_path: Path) -> None:
    """A mix without annotation is one refusal, whatever else of the piece is there."""
    path = write_piece(tmp_path, "drummer_1", SALSA, BEAT)
    (tmp_path / path).unlink()
    (refused,) = [f for f in enst.scan(tmp_path, SHIPPED) if isinstance(f, Rejected)]
    assert (refused.path, refused.code) == (f"{PUBLIC}/drummer_1/audio/wet_mix/{SALSA}.wav", "missing-annotation")
