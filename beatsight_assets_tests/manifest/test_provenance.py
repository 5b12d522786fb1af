"""Every event traces back to files, a licence and an importer; each way to break that is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from beatsight_assets import sources
from beatsight_assets.errors import InputError
from beatsight_assets.manifest import merge
from beatsight_assets.manifest.provenance import AuditOptions, run, to_markdown
from beatsight_assets.settings import Settings
from beatsight_assets_tests.sources.lake import NAME, put_table, put_take, with_config


@pytest.fixture
def lake(settings: Settings) -> Settings:
    """A merged manifest of three takes."""
    root = settings.layout.raw(NAME)
    for i, name in enumerate("abc"):
        put_take(root, name, i)
    put_table(root, list("abc"))
    sources.ingest(settings, "demo")
    merge.run(settings)
    return settings


def failing(settings: Settings, **options: object) -> list[str]:
    verdict = run(settings, AuditOptions(**options)).verdict("provenance_audit")  # type: ignore[arg-type]
    assert verdict is not None
    return [r.name for r in verdict.rules if not r.passed] + [r.code for r in verdict.reasons]


def rewrite(settings: Settings, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    path = settings.layout.provenance(NAME)
    settings.store.publish_frame(path, change(pl.read_parquet(path)))


ONE = pl.col("session_id") == "midi/b.mid"
BREAKS: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], list[str]]] = {
    "nothing": (lambda f: f, []),
    "no row": (lambda f: f.filter(~ONE), ["sessions_without_provenance"]),
    "no licence": (lambda f: f.with_columns(license_ref=pl.when(ONE).then(pl.lit("")).otherwise("license_ref")), ["licence_missing"]),
    "null licence": (lambda f: f.with_columns(license_ref=pl.when(ONE).then(None).otherwise("license_ref")), ["licence_missing"]),
    "other audio": (
        lambda f: f.with_columns(sample_paths=pl.when(ONE).then(pl.lit(["midi/b.mid"])).otherwise("sample_paths")),
        ["audio_paths_not_in_provenance"],
    ),
    "facts are no JSON": (lambda f: f.with_columns(facts=pl.when(ONE).then(pl.lit("{")).otherwise("facts")), ["malformed_provenance"]),
    "a row too many": (
        lambda f: pl.concat([f, f.filter(ONE).with_columns(session_id=pl.lit("z.mid"))]),
        ["unreferenced_provenance_sessions"],
    ),
    "no rows at all": (lambda f: f.clear(), ["sessions_without_provenance", "nothing-to-judge"]),
}


@pytest.mark.parametrize("case", BREAKS)
def test_each_break_is_named(lake: Settings, case: str) -> None:
    """One damage, one rule; what is only unused is a warning."""
    change, expected = BREAKS[case]
    rewrite(lake, change)
    assert failing(lake) == expected
    assert run(lake).passed == (expected in ([], ["unreferenced_provenance_sessions"]))


def test_changed_and_lost_files_are_found(lake: Settings) -> None:
    """`--recompute-digests` reads the files: another byte or no file is a mismatch, every time it is asked."""
    assert failing(lake, recompute=True) == []
    path = lake.layout.raw(NAME) / "audio/b.wav"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x09")
    assert failing(lake, recompute=True) == ["digest_mismatches"]
    path.unlink()
    assert failing(lake, recompute=True) == ["digest_mismatches"]
    path.write_bytes(data)
    assert failing(lake, recompute=True) == []


def test_a_wrong_reference_and_an_unknown_dataset(lake: Settings) -> None:
    """An event that points at another session's provenance; a dataset that no config knows."""
    frame = pl.read_parquet(lake.layout.merged)
    lake.store.publish_frame(lake.layout.merged, frame.with_columns(metadata_ref=pl.lit("provenance:midi/a.mid")))
    assert failing(lake) == ["metadata_ref_mismatches"]
    lake.store.publish_frame(lake.layout.merged, frame.with_columns(source_set=pl.lit("nobody")))
    assert failing(lake) == ["sessions_without_provenance", "unknown_sources", "nothing-to-judge"]


def test_a_baseline_forgives_what_it_names_and_reports_what_vanished(lake: Settings, tmp_path: Path) -> None:
    """Known problems pass, a new one fails, one that is gone is told."""
    rewrite(lake, BREAKS["no licence"][0])
    known = tmp_path / "known.json"
    row = '{"source_set": "beatsight_demo", "session_id": "midi/b.mid", "code": "licence_missing"}'
    known.write_text(f"[{row}]")
    assert failing(lake, baseline=known) == []
    known.write_text(f"[{row}, {row.replace('b.mid', 'c.mid')}]")
    assert run(lake, AuditOptions(baseline=known)).figures["vanished"] == 1
    known.write_text(f"[{row.replace('b.mid', 'c.mid')}]")
    assert failing(lake, baseline=known) == ["licence_missing"]
    known.write_text(f"[{row.replace('licence_missing', 'licence_mising')}]")
    with pytest.raises(InputError, match="licence_mising"):
        run(lake, AuditOptions(baseline=known))


def test_an_unreadable_table_is_an_error_not_a_skip(lake: Settings) -> None:
    """`malformed-provenance` is exit code 3."""
    lake.layout.provenance(NAME).write_bytes(b"PAR1 no")
    with pytest.raises(InputError) as failure:
        run(lake)
    assert failure.value.code == "malformed-provenance"


def test_audio_below_another_root_is_in_provenance(settings: Settings, tmp_path: Path) -> None:
    """Paths are compared relative to the roots on both sides, so a dataset in several folders matches like any other."""
    one, other = tmp_path / "one", tmp_path / "other"
    for i, name in enumerate("ab"):
        put_take(one, name, i, audio=False)
        put_take(other, name, i)
    put_table(one, list("ab"))
    settings = with_config(settings, roots=(str(one), str(other)))
    sources.ingest(settings, "demo")
    merge.run(settings)
    assert failing(settings, recompute=True) == []


def test_the_table_for_people(lake: Settings) -> None:
    """One line per dataset with all figures."""
    lines = to_markdown(run(lake)).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| beatsight_demo | 12 | 3 | 0 |")
