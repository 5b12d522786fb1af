"""`beatsight sampling`: how often each group is drawn in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beatsight_assets.cli.common import Session, command, emit, finish, manifest_path
from beatsight_assets.errors import ConfigError, InputError
from beatsight_assets.settings import PROFILES

META = "beatsight.sampling-profile"
SHOWN = 20


def _factors(pairs: tuple[str, ...], option: str) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{option} is {pair!r}; it must be technique=factor, such as hihat_bark=1.25", code="bad-option") from None
        if not name.strip():
            raise ConfigError(f"{option} is {pair!r}; it names no technique", code="bad-option")
    return found


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.strip() for text in texts for n in text.split(",") if n.strip()))


@command(
    "derive", help="Weights per group of the annotated manifest, or of MANIFEST; options override the profile, also with its own value."
)
@click.argument("manifest", required=False)
@click.option("--profile-name", help="Profile of configs/sampling.yaml; --profile takes its names too.  [default: its `default`]")
@click.option("--group-field", help="Event field whose values are the groups; events without one fall into their session.")
@click.option("--exponent", type=float, help="Weight falls with the number of events to this power.")
@click.option("--smoothing", type=float, help="Added to the number of events.")
@click.option("--min-count", type=int, help="Groups with fewer events are dropped and listed.")
@click.option("--max-per-group", type=int, help="More events of a group do not count.")
@click.option("--boost", multiple=True, metavar="T=F", help="Factor of at least 1 for groups where the technique occurs; repeat it.")
@click.option("--attenuate", multiple=True, metavar="T=F", help="Factor of at most 1 for groups where the technique occurs; repeat it.")
@click.option("--dedupe-fields", help="Events equal in all these fields count once; separated by commas, empty for none.")
@click.option("--technique-filter", multiple=True, help="Only events that carry one of these count; repeat it or use commas.")
@click.option("--match-all", is_flag=True, help="The event must carry all of them.")
@click.option("--include-unmatched", is_flag=True, help="Groups without any such event count all their events instead of vanishing.")
@click.option("--min-weight", type=float)
@click.option("--max-weight", type=float)
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: reports/sampling/<manifest>_weights.json]")
def derive_command(
    session: Session,
    manifest: str | None,
    profile_name: str | None,
    boost: tuple[str, ...],
    attenuate: tuple[str, ...],
    dedupe_fields: str | None,
    technique_filter: tuple[str, ...],
    match_all: bool,
    include_unmatched: bool,
    output: Path | None,
    **overrides: Any,
) -> int:
    from beatsight_assets.sampling import SamplingOptions, derive_file, run

    given = {k: v for k, v in overrides.items() if v is not None}
    given |= {k: v for k, v in (("boosts", _factors(boost, "--boost")), ("attenuations", _factors(attenuate, "--attenuate"))) if v}
    if dedupe_fields is not None:
        given["dedupe_fields"] = _names((dedupe_fields,))
    named = profile_name or click.get_current_context().meta.get(META)
    options = SamplingOptions(named, given, _names(technique_filter), match_all, include_unmatched)
    if manifest is None and output is None:
        return finish(session, run(session.settings, options, progress=session.progress))
    path = manifest_path(session.settings, manifest or "annotated")
    layout = session.settings.layout
    target = session.settings.user_output(output) if output else layout.report("sampling", f"{path.stem}_weights.json")
    if target.exists() and target.samefile(path):
        raise ConfigError("--output names the manifest itself; weights are another file", code="would-overwrite")
    weights, verdict = derive_file(session.settings, path, target, options)
    figures = {"groups": len(weights.groups), "repeated_events": weights.n_repeated, "capped_events": weights.n_capped}
    text = f"{len(weights.groups):,} groups, weights {verdict.figures['min_weight']:.4g} .. {verdict.figures['max_weight']:.4g}"
    emit(session, figures | {"output": str(target), "verdict": verdict.to_json()}, f"{text}\n-> {target}")
    return 0 if verdict.passed else 1


def _either_profile(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """`--profile` of this command is a profile of limits (demo, dev, prod) or of sampling: the names differ."""
    if value is None or value in PROFILES:
        return value
    ctx.meta[META] = value
    return None


for _option in derive_command.params:
    if _option.name == "profile":
        _option.type = click.STRING
        _option.callback = _either_profile
        _option.help = "Which limits apply (demo, dev, prod), or a profile of configs/sampling.yaml (prod_combined, groove, ..)."  # type: ignore[attr-defined]


@command("show", help="What a weights file says: its manifest, its profile, and the groups that are drawn most.")
@click.argument("weights", required=False)
def show_command(session: Session, weights: str | None) -> int:
    from beatsight_assets import store
    from beatsight_assets.sampling import SCHEMA

    path = Path(weights) if weights else session.settings.layout.report("sampling", "annotated_weights.json")
    found = store.read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(
            "this is no sampling weights file. Write one with: beatsight sampling derive", code="bad-metadata", where=str(path)
        )
    groups = sorted(found["groups"].items(), key=lambda item: (-item[1]["weight"], item[0]))[:SHOWN]
    lines = [f"profile {found['profile']} on {found['manifest']['path']} ({found['manifest']['sha256'][:12]})"]
    lines.append("  " + "   ".join(f"{k} {v:,}" for k, v in found["totals"].items()))
    lines += [f"  {g['weight']:>8.4f} {g['count']:>9,} events  {store.printable(name)}" for name, g in groups]
    emit(session, found, "\n".join(lines))
    return 0
