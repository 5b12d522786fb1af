"""`beatsight transcribe`: audio to drum hits, and how well two sets of hits agree."""

from __future__ import annotations

from pathlib import Path

import click

from beatsight_assets.cli.common import Session, command, emit
from beatsight_assets.errors import ConfigError


@command("run", help="Transcribe an audio file to .bsm, MIDI and label tracks with the promoted model, or the one that --model names.")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="Audio file: wav, flac, ogg, mp3, aiff.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File to write; other formats go beside it.")
@click.option("--format", "formats", default="bsm", show_default=True, help="Any of bsm,midi,audacity,jsonl.")
@click.option("--model", help="Release, run or folder of a model.")
@click.option("--confidence", type=click.FloatRange(0, 1), help="Score from which a peak is a hit.  [default: stored with the model]")
@click.option("--tempo", help="Beats per minute, or auto.", default="auto", show_default=True)
@click.option("--title")
@click.option("--artist", default="unknown", show_default=True)
@click.option("--creator")
@click.option(
    "--component-view", type=click.Choice(["bsm", "full23"]), default="bsm", show_default=True, help="bsm writes the three rides as ride."
)
def run_command(
    session: Session, source: Path, output: Path, formats: str, model: str | None, confidence: float | None, tempo: str, title: str | None, artist: str,
    creator: str | None, component_view: str,
) -> int:  # fmt: skip
    from beatsight_assets.transcribe.run import TranscribeOptions, transcribe

    wanted = tuple(f.strip() for f in formats.split(",") if f.strip())
    try:
        bpm = None if tempo == "auto" else float(tempo)
    except ValueError:
        raise ConfigError(f"--tempo is {tempo!r}; it must be auto or beats per minute", code="bad-option") from None
    more = {} if creator is None else {"creator": creator}
    options = TranscribeOptions(
        source,
        output,
        model=model,
        confidence=confidence,
        formats=wanted,
        title=title,
        artist=artist,
        component_view=component_view,
        tempo_bpm=bpm,
        **more,
    )
    found = transcribe(session.settings, options, progress=session.progress)
    lines = [
        f"{source.name}: {sum(found.counts.values()):,} hits, {found.tempo.bpm:.1f} bpm ({found.tempo.source}), classifier {found.classifier} {found.model}"
    ]
    lines += [f"  {label:<20}{n:>7,}" for label, n in found.counts.items()]
    lines += [f"  note: {text}" for text in found.notices] + [f"  -> {path}" for path in found.files.values()]
    if found.exit_code:
        lines.append("  nothing-detected: no peak reached the threshold. Is there a drum in this file? Try --confidence 0.2")
    emit(session, found.to_json(), "\n".join(lines))
    return found.exit_code


@command("score", help="Onset F-measure at 20 and 50 ms of ESTIMATE against REFERENCE (.bsm, .mid, .txt label track, .jsonl).")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("estimate", type=click.Path(path_type=Path))
@click.option("--note-map", default="beatsight", show_default=True, help="Note map of MIDI files on either side.")
def score_command(session: Session, reference: Path, estimate: Path, note_map: str) -> int:
    from beatsight_assets.taxonomy import Taxonomy
    from beatsight_assets.transcribe.score import score

    result = score(reference, estimate, Taxonomy.load(session.settings), note_map=note_map)
    lines = [f"{reference.name} against {estimate.name}: {result.n_reference:,} and {result.n_estimate:,} hits"]
    for view, by_tolerance in result.counts.items():
        for tolerance in by_tolerance:
            total = result.overall(view, tolerance)
            lines.append(
                f"  {view:<10} {tolerance:>3g} ms   F {total.f1 or 0:.3f}   precision {total.precision or 0:.3f}   recall {total.recall or 0:.3f}"
            )
    emit(session, result.to_json(), "\n".join(lines))
    return 0
