"""Command line: one door into the same functions that the Dagster assets call.

Belongs here: options, printing, exit codes. Does not belong here: any decision about data.
This module imports nothing heavy: `beatsight --help` answers before polars, torch or dagster are touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

# group -> {verb: what it does}; the module beatsight_assets.cli.<group> holds one command per verb.
COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "source": ("Datasets: what is there, and reading them into events.", {
        "list": "Datasets the platform knows and which of them are present.",
        "scan": "Recordings and files of one dataset, without writing anything.",
        "ingest": "Read a dataset into events, provenance and quarantine."}),
    "raw": ("Raw data: is it there, whole and unchanged?", {
        "checksums": "Write the sha256 of every file below a folder as a checksum list.",
        "integrity": "Are the raw folders there, and the files that the checksum lists name?",
        "presence": "Sessions, files and bytes per root, and ingested sessions that no root holds."}),
    "render": ("Turn MIDI performances into audio with exact labels.", {
        "groove": "Render Groove MIDI takes with several synthesised kits into raw/groove_rendered.",
        "demo": "Write the demo dataset into raw/beatsight_demo."}),
    "events": ("The manifest of events.", {
        "validate": "Check a manifest against the schema and name the first rows that break it.",
        "merge": "Merge the events of all enabled datasets, or of named files.",
        "alias": "Canonical labels; hits that thereby are the same hit twice become one.",
        "openness": "Hi-hat openness from raw controller values by a device's curve.",
        "annotate": "Canonical labels, openness and techniques.",
        "hihat": "Open hi-hats and how many of them are choked.",
        "crash-embed": "What each crash sounds like.",
        "crash-assign": "Tell the first crash from the second.",
        "near-duplicates": "Recordings that are the same sound in other bytes.",
        "split": "Assign every group to train, val or test.",
        "compare": "What changed between two manifests.",
        "metrics": "Counts and statistics of a manifest.",
        "provenance": "Does every event trace back to files, a licence and an importer?",
        "export": "Write a manifest as CSV, JSON, JSONL, Parquet, label track or layers.",
        "import": "Events from CSV, JSON, JSONL, label tracks or layers."}),
    "health": ("Dataset health.", {
        "report": "Judge the annotated manifest and write JSON and HTML.",
        "compare": "Compare the health report with the blessed baseline.",
        "bless": "Make the current report the baseline."}),
    "sampling": ("Sampling weights.", {"derive": "Derive weights per group.", "show": "What a weights file says."}),
    "bundle": ("Training clips cut from audio.", {
        "plan": "Which clips a bundle would hold, and how much room they take.",
        "verify": "What an export would cut, and what is missing; writes nothing.",
        "smoke": "Export a limited bundle, check it, say how long the whole would take.",
        "export": "Cut the clips; repeat it with --resume after a kill.",
        "check": "Is every byte what it was sealed with?",
        "heal-list": "Planned events without a clip.",
        "convert": "A bundle in the form of another tool.",
        "list": "Bundles and their state.",
        "remove": "Delete a bundle.",
        "archive": "Keep what a bundle was, without its samples."}),
    "features": ("Feature cache.", {
        "warm": "Compute and cache the features of a bundle's clips, or of every recording.",
        "estimate": "Bytes that the features of a bundle take.",
        "prune": "Delete features that no bundle needs.",
        "convert": "Cached features in a narrower form."}),
    "model": ("Train, judge and promote.", {
        "train": "Train a candidate.",
        "evaluate": "Match the candidate's hits against held-out annotations.",
        "predict": "Write the predictions that readiness judges.",
        "describe": "Layers, parameters and classes of a model.",
        "devices": "Devices that training can use.",
        "promote": "Publish the judged candidate as the served model.",
        "crossval": "Leave-one-group-out evaluation over a dataset with real audio."}),
    "readiness": ("Readiness gates of a release.", {
        "align": "Do annotated onsets lie where the audio rises?",
        "boundary-pack": "Hits near the edges of streaming windows.",
        "run": "Judge boundary, open set, bootstrap and calibration."}),
    "quarantine": ("Files that were refused.", {"list": "One row per refused file.", "show": "Why one file was refused."}),
    "checklist": ("Steps around the long ones, in order.", {
        "post-ingest": "What has to hold after an ingest.",
        "pre-export": "What has to hold before an export.",
        "post-export": "What follows a sealed bundle."}),
    "collect": ("Own samples.", {
        "add": "Add one hit that you marked in an audio file.",
        "from-beatmap": "Add the hits of beatmaps.",
        "stats": "Collected hits against what a model needs.",
        "export": "Cut the collected hits into a bundle."}),
    "tracking": ("Logs of training runs elsewhere.", {"sync": "Bring the logs of runs to Weights & Biases."}),
    "transcribe": ("Audio to drum hits.", {
        "run": "Transcribe an audio file to .bsm, MIDI and label tracks.",
        "score": "Onset F-measure of one transcription against a reference."}),
}  # fmt: skip
ALONE = {
    "init": "Create the data root and its Dagster instance.",
    "doctor": "Look for what would go wrong: versions, disk, permissions, a damaged instance.",
    "dev": "Start the Dagster UI.",
    "demo": "Demo data, the whole graph through Dagster, a promoted model, a transcribed take.",
    "env": "Print every resolved path as export lines.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when help is shown."""

    def __init__(self, name: str, commands: dict[str, str], module: str, **kwargs: object) -> None:
        super().__init__(name=name, **kwargs)  # type: ignore[arg-type]
        self.texts = commands
        self.module = module

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.texts, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.texts:
            loaded = importlib.import_module(self.module)
            return getattr(loaded, cmd_name.replace("-", "_") + "_command")  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, text in self.texts.items()] + [(n, c.get_short_help_str()) for n, c in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def build() -> click.Group:
    """The command tree. Options given before the group are the defaults of every command below it."""
    root = LazyGroup(
        "beatsight",
        ALONE,
        "beatsight_assets.cli.alone",
        help="Drum-transcription training data: raw datasets to a promoted model.\n\n"
        "Exit codes: 0 done, 1 a gate failed or something is missing, 2 wrong usage or busy, 3 unreadable input or full disk.",
        params=[
            click.Option(
                ["--data-root"], metavar="DIR", help="Folder that holds raw/ and everything made from it [env BEATSIGHT_DATA_ROOT]."
            ),
            click.Option(["--profile"], metavar="NAME", help="demo, dev or prod: which limits apply [env BEATSIGHT_PROFILE, else dev]."),
        ],
        callback=_remember,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    for name, (text, verbs) in COMMANDS.items():
        root.add_command(LazyGroup(name, verbs, f"beatsight_assets.cli.{name}", help=text, short_help=text))
    return root


def _remember(data_root: str | None, profile: str | None) -> None:
    click.get_current_context().obj = {"data_root": data_root, "profile": profile}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `beatsight`: runs a command and turns errors into one readable message and the right exit code."""
    from beatsight_assets.workers import one_thread_per_call

    one_thread_per_call()
    try:
        result = build().main(args=arguments, prog_name="beatsight", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted. What was finished is kept; repeat the command to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("interrupted. What was finished is kept; repeat the command to go on", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:  # the CLI's last line
        from beatsight_assets.errors import BeatSightError

        if isinstance(error, BeatSightError):
            click.echo(f"beatsight: {error}", err=True)
            sys.exit(error.exit_code)
        raise
