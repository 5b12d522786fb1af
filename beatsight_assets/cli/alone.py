"""Commands without a group: the data root, the Dagster instance, the demo."""

from __future__ import annotations

import re
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from beatsight_assets.cli.common import Session, command, emit
from beatsight_assets.errors import Busy, ConfigError, GateFailed


@command("env", help="Print every resolved path as export lines.")
def env_command(session: Session) -> int:
    layout = session.settings.layout
    values = {
        "BEATSIGHT_DATA_ROOT": str(layout.root),
        "BEATSIGHT_PROFILE": session.settings.profile,
        "BEATSIGHT_EXECUTOR": session.settings.executor,
        "BEATSIGHT_WORKERS": str(session.settings.n_workers),
        "BEATSIGHT_RAW_DIR": str(layout.raw_root),
        "BEATSIGHT_RUN_DIR": str(layout.runs),
        "BEATSIGHT_MODEL_DIR": str(layout.promoted),
        "BEATSIGHT_REPORT_DIR": str(layout.reports),
        "DAGSTER_HOME": str(layout.dagster_home),
    }
    emit(session, values, "\n".join(f"export {k}={shlex.quote(v)}" for k, v in values.items()))
    return 0


@command("init", help="Create the data root and its Dagster instance once, under a lock. Safe to repeat and to run at the same time.")
def init_command(session: Session) -> int:
    from beatsight_assets.dag.instance import init

    report = init(session.settings)
    emit(session, report.to_json(), report.text)
    return 0


@command("doctor", help="Look for what would go wrong: versions, disk, permissions, a damaged instance.")
@click.option("--failpoints", is_flag=True, help="List the places where BEATSIGHT_FAILPOINT can strike.")
@click.option("--repair", is_flag=True, help="Mend a database with two schema versions. Stop Dagster first.")
def doctor_command(session: Session, failpoints: bool, repair: bool) -> int:
    if failpoints:
        names = _failpoint_names()
        emit(session, {"failpoints": names}, "\n".join(names))
        return 0
    from beatsight_assets.dag import instance

    repaired = instance.repair(session.settings) if repair else []
    findings = instance.doctor(session.settings)
    texts = [f"repaired  {text}" for text in repaired] + [f.text for f in findings]
    emit(session, {"findings": [f.to_json() for f in findings], "repaired": repaired}, "\n".join(texts))
    return 1 if any(f.is_problem for f in findings) else 0


def _failpoint_names() -> list[str]:
    """Every `failpoint(...)` of the package, as written; `{stage}` stands for the name of a stage."""
    package = Path(__file__).parent.parent
    found = (re.findall(r'failpoint\(f?"([^"]+)"\)', path.read_text()) for path in package.rglob("*.py"))
    return sorted({name for names in found for name in names})


@command("dev", help="Start the Dagster UI on this data root.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def dev_command(session: Session, port: int, host: str) -> int:
    from beatsight_assets.dag.instance import dev

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Busy(f"port {port} of {host} is taken ({error.strerror}). Give another --port", code="busy") from error
    return dev(session.settings, port=port, host=host)


@command("demo", help="Demo data, the whole graph through Dagster in this process, a promoted model, a transcribed take of an unseen kit.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--sessions", type=click.IntRange(min=4), help="Takes to make.  [default: 28]")
@click.option("--data-only", is_flag=True, help="Only the demo data.")
@click.option("--examples", type=click.Path(path_type=Path), help="Only write one example of every input form into this folder.")
def demo_command(session: Session, seed: int, sessions: int | None, data_only: bool, examples: Path | None) -> int:
    from beatsight_assets.cli.common import finish

    if examples is not None:
        from beatsight_assets.render.examples import write_examples

        folder = session.settings.user_output(examples)
        written = [{"path": r.path.relative_to(folder).as_posix(), "bytes": r.n_bytes, "sha256": r.sha256} for r in write_examples(folder)]
        emit(session, {"folder": str(folder), "files": written}, "\n".join(f"-> {folder}/{w['path']}" for w in written))
        return 0
    from beatsight_assets.render.stage import RenderOptions, run

    if session.settings.profile == "prod":
        raise ConfigError(
            "the demo is judged by the limits of profile demo. Leave --profile out", code="bad-option", where="--profile prod"
        )
    settings = replace(session.settings, profile="demo")
    options = RenderOptions(seed=seed) if sessions is None else RenderOptions(seed=seed, sessions=sessions)
    if data_only:
        return finish(session, run(settings, options, progress=session.progress))
    from beatsight_assets.cli.demo import text_of
    from beatsight_assets.dag.demo import run_demo

    def say(text: str) -> None:
        if not session.quiet:
            click.echo(f"  {text}", err=True)

    summary = run_demo(settings, options=options, progress=say)
    payload: dict[str, Any] = summary.to_json()
    emit(session, payload, text_of(settings, summary))
    if not summary.passed:
        raise GateFailed(f"the demo is red: {'; '.join(summary.failures[:5])}", code="demo-red")
    return 0
