"""What every command shares: its options, its progress lines, and how a report is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from beatsight_assets import clock, store
from beatsight_assets.errors import BeatSightError, ConfigError, InputError, NothingToDo
from beatsight_assets.settings import PROFILES, Settings, load_settings
from beatsight_assets.stages import Progress, Report
from beatsight_assets.verdict import Verdict, shown
from beatsight_assets.workers import DASK, require_kind

if TYPE_CHECKING:
    import polars as pl

MANIFEST_SUFFIXES = (".parquet", ".jsonl")
PROGRESS_EVERY_S = 1.0  # on a terminal
PROGRESS_IN_FILE_S = 10.0  # elsewhere, where every line stays


@dataclass(frozen=True)
class Session:
    """One invocation: settings, and how to talk to the user."""

    settings: Settings
    as_json: bool
    quiet: bool
    report_file: Path | None
    log_file: Path | None = None
    live: bool = False  # progress is one line that is written over

    @property
    def progress(self) -> Progress:
        return _printer(self.quiet, self.live)

    def with_workers(self, n_workers: int) -> Session:
        """The same with that many worker processes; a cluster stays a cluster."""
        executor = self.settings.executor
        local = executor if executor.startswith(DASK) else "processes" if n_workers > 1 else "inline"
        return replace(self, settings=replace(self.settings, n_workers=n_workers, executor=local))


def command(name: str, **attributes: Any) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command with the options every command has; the function gets `session` first and returns an exit code or None."""

    def build(function: Callable[..., int | None]) -> click.Command:
        @wraps(function)
        def called(
            data_root: str | None,
            profile: str | None,
            as_json: bool,
            quiet: bool,
            report: str | None,
            log_file: str | None,
            workers: int | None,
            executor: str | None,
            **options: Any,
        ) -> int:
            outer = click.get_current_context().obj or {}
            settings = load_settings(data_root or outer.get("data_root"), profile or outer.get("profile"))
            session = Session(settings, as_json, quiet, Path(report) if report else None, Path(log_file) if log_file else None)
            if workers is not None:
                session = session.with_workers(workers)
            if executor is not None:
                kind = require_kind(executor, where="--executor")
                session = replace(session, settings=replace(session.settings, executor=kind))
            return function(session, **options) or 0

        wrapped = click.command(name, context_settings={"max_content_width": 120}, **attributes)(called)
        wrapped.params += [
            click.Option(["--data-root"], metavar="DIR", help="Folder that holds raw/ and everything made from it."),
            click.Option(["--profile"], type=click.Choice(PROFILES), help="Which limits apply."),
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON object on stdout, texts on stderr."),
            click.Option(["--quiet"], is_flag=True, help="No progress lines."),
            click.Option(["--report"], metavar="FILE", help="Also write the report there as JSON."),
            click.Option(["--log-file"], metavar="FILE", help="Also write the printed summary there as plain text."),
            click.Option(["--workers"], type=click.IntRange(1, 256), help="Worker processes; results do not depend on it."),
            click.Option(
                ["--executor"],
                metavar="inline|processes|dask:ADDRESS",
                help="Where independent items run; results do not depend on it [env BEATSIGHT_EXECUTOR].",
            ),
        ]
        return wrapped

    return build


def _printer(quiet: bool, live: bool) -> Progress:
    """On a terminal a line per second at most, elsewhere one per ten; `live` writes over one line."""
    last = [float("-inf")]
    every_s = PROGRESS_EVERY_S if live or sys.stderr.isatty() else PROGRESS_IN_FILE_S

    def say(text: str) -> None:
        now = clock.monotonic_s()
        if not quiet and now - last[0] >= every_s:
            last[0] = now
            click.echo(f"\r\x1b[2K  {text}" if live else f"  {text}", err=True, nl=not live)

    return say


def finish(session: Session, *reports: Report, failed: Mapping[str, BeatSightError] = MappingProxyType({})) -> int:
    """Print reports, write --report, and say by the exit code whether every gate passed; `failed` are parts that came to no report."""
    found: list[dict[str, Any]] = [r.to_json() | {"reused": r.reused} for r in reports]
    told = [{"name": name, "code": error.code, "message": error.message} for name, error in failed.items()]
    lines = [text_of(r) for r in reports] + [f"{name}: FAIL\n  {error}" for name, error in failed.items()]
    payload = found[0] if len(found) == 1 and not told else {"reports": found} | ({"failed": told} if told else {})
    emit(session, payload, "\n".join(lines))
    return max([int(not all(r.passed for r in reports)), *(error.exit_code for error in failed.values())])


def emit(session: Session, payload: Any, text: str, show: Callable[[], None] | None = None) -> None:
    """JSON or text on stdout, the JSON into --report, the text into --log-file; `show` puts it on the terminal in its own way."""
    for name, content in ((session.report_file, store.to_json_bytes(payload)), (session.log_file, f"{text}\n".encode())):
        if name is not None:
            path = session.settings.user_output(name)
            store.Store(path.parent, remember=False).publish(path, content)
    if session.as_json:
        sys.stdout.write(store.to_json_bytes(payload, indent=None).decode())
    elif show is not None:
        show()
    elif text:
        click.echo(text)


def text_of(report: Report) -> str:
    """A stage's report as a person reads it: what, how many, gates with values and limits, where."""
    name = report.stage if report.partition is None else f"{report.stage}[{report.partition}]"
    lines = [f"{name}: " + ("nothing changed, kept what was there" if report.reused else "done")]
    figures = [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:,.4g}" for k, v in report.figures.items()]
    lines += ["  " + "   ".join(figures[i : i + 6]) for i in range(0, min(len(figures), 18), 6)]
    for verdict in report.verdicts:
        lines += verdict_lines(verdict)
    lines += [f"  -> {a.path}" + (f"  ({a.rows:,} rows)" if a.rows is not None else "") for a in report.outputs[:6]]
    if len(report.outputs) > 6:
        lines.append(f"  -> and {len(report.outputs) - 6} more files")
    return "\n".join(lines)


def verdict_lines(verdict: Verdict) -> list[str]:
    """A verdict as a person reads it; of many rules those that do not hold."""
    lines = [f"  {verdict.gate:<14} {verdict.status.upper()}"]
    rules = [r for r in verdict.rules if not r.passed] if len(verdict.rules) > 12 else verdict.rules
    for rule in rules:
        mark = "waived" if rule.waived else "ok" if rule.passed else "FAIL" if rule.blocking else "warn"
        lines.append(
            f"    {mark:<6} {rule.name:<28} {shown(rule.value):>10}   limit {shown(rule.limit)}"
            + ("" if rule.passed and not rule.waived else f"   {rule.detail}")
        )
    if hidden := len(verdict.rules) - len(rules):
        lines.append(f"    ok     {hidden} more rules")
    return lines + [f"    FAIL   {reason.code}: {reason.message}" for reason in verdict.reasons]


def manifest_path(settings: Settings, name: str) -> Path:
    """A manifest given as a name (`annotated`, `merged`, a dataset), a path below the data root, or any path.

    Raises
    ------
    InputError `missing-input` : nothing is there
    """
    layout = settings.layout
    known = {"annotated": layout.annotated, "merged": layout.merged}
    if name in known:
        path = known[name]
    elif not name.endswith((".parquet", ".jsonl")):
        path = layout.events(settings.dataset(name)[0])
    else:
        path = Path(name) if Path(name).is_absolute() or Path(name).exists() else layout.resolve(name)
    if not path.is_file():
        raise InputError(f"{name} does not exist. Run the step that writes it first", code="missing-input", where=str(path))
    return path


def read_manifest(session: Session, name: str) -> tuple[Path, pl.DataFrame]:
    """A manifest by name or path (`manifest_path`), and its events.

    Raises
    ------
    InputError `missing-input`, `bad-manifest`, `bad-time`
    NothingToDo `nothing-to-do` : it holds no event
    """
    from beatsight_assets.events import read_events

    path = manifest_path(session.settings, name)
    frame = read_events(path)
    if frame.height == 0:
        raise NothingToDo(f"{name} holds no event; nothing was written", code="nothing-to-do")
    return path, frame


def manifest_target(session: Session, output: Path) -> Path:
    """Where a manifest that the user asks for is written; ask before any work is done.

    Raises
    ------
    ConfigError `unknown-choice` : neither .parquet nor .jsonl; `would-overwrite`
    """
    if output.suffix not in MANIFEST_SUFFIXES:
        raise ConfigError.unknown_choice("suffix", output.suffix, MANIFEST_SUFFIXES, where=str(output))
    return session.settings.user_output(output)


def other_target(session: Session, output: Path, *inputs: Path) -> Path:
    """Where something that is no manifest is written: not onto a manifest that it is about.

    Raises
    ------
    ConfigError `would-overwrite`
    """
    target = session.settings.user_output(output)
    if target.exists() and any(target.samefile(path) for path in inputs):
        raise ConfigError(f"{output} is the manifest itself. Choose another file", code="would-overwrite", where="--output")
    return target


def write_manifest(session: Session, target: Path, frame: pl.DataFrame) -> store.Receipt:
    """Publish events as Parquet or JSONL by the suffix of `manifest_target`; replaced whole, also when it was the input."""
    from beatsight_assets import events
    from beatsight_assets.taxonomy import Taxonomy

    keep = store.Store(target.parent, remember=False)
    if target.suffix == ".jsonl":
        return keep.publish(target, events.to_jsonl(frame))
    return keep.publish_frame(target, frame, metadata=events.parquet_metadata(Taxonomy.load(session.settings)))
