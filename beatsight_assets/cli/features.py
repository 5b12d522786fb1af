"""`beatsight features`: the caches of spectrograms, of whole recordings and of the clips of a bundle."""

from __future__ import annotations

import click

from beatsight_assets.cli.common import Session, command, emit, finish

SPLITS = ("train", "val", "test")
DTYPES = ("float16", "float32", "uint8")
dtype_option = click.option("--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Form of the values.")
splits_option = click.option("--splits", type=click.Choice(SPLITS), multiple=True, help="Of the bundle; repeat it.  [default: all]")


@command(
    "warm", help="Compute and cache the features of every clip of bundle NAME; without NAME, of every recording. What is cached is kept."
)
@click.argument("name", required=False)
@splits_option
@dtype_option
def warm_command(session: Session, name: str | None, splits: tuple[str, ...], dtype: str) -> int:
    if name is None:
        from beatsight_assets.features.cache import FeatureOptions, run

        return finish(session, run(session.settings, FeatureOptions(), progress=session.progress))
    return _clips(session, name, splits, dtype, convert=False)


@command("convert", help="The cached features of bundle NAME in a narrower form, made from the wider one; the wider one stays.")
@click.argument("name")
@splits_option
@click.option("--dtype", type=click.Choice(DTYPES), required=True, help="Form of the values.")
def convert_command(session: Session, name: str, splits: tuple[str, ...], dtype: str) -> int:
    return _clips(session, name, splits, dtype, convert=True)


def _clips(session: Session, name: str, splits: tuple[str, ...], dtype: str, *, convert: bool) -> int:
    from beatsight_assets.features import clip_cache

    options = clip_cache.WarmOptions(name, splits or SPLITS, dtype, convert)
    return finish(session, clip_cache.run(session.settings, options, progress=session.progress))


@command("estimate", help="Bytes that the features of bundle NAME, or of --clips clips, take.")
@click.argument("name", required=False)
@click.option("--clips", type=click.IntRange(min=1), help="So many instead of those of a bundle.")
@splits_option
@dtype_option
def estimate_command(session: Session, name: str | None, clips: int | None, splits: tuple[str, ...], dtype: str) -> int:
    from beatsight_assets.features import clip_cache
    from beatsight_assets.features.definitions import clip_definition

    if (name is None) == (clips is None):
        raise click.UsageError("give NAME or --clips N")
    if name is not None:
        bundle = clip_cache.opened(session.settings, clip_cache.WarmOptions(name))
        clips = sum(p.n_clips for p in clip_cache.chosen_parts(bundle, splits or SPLITS))
    feature = clip_definition()
    found = {"definition": feature.name, "dtype": dtype, "clips": clips, "bytes": clip_cache.estimate_bytes(clips or 0, feature, dtype)}
    emit(session, found, f"{clips:,} clips take {found['bytes']:,} bytes as {dtype}")
    return 0


@command("prune", help="Delete cached features that none of the bundles to keep refers to. Without --apply it only says what would go.")
@click.option("--keep", "names", multiple=True, required=True, metavar="NAME", help="A bundle whose features stay; repeat it.")
@click.option("--apply", is_flag=True, help="Really delete them.")
def prune_command(session: Session, names: tuple[str, ...], apply: bool) -> int:
    from beatsight_assets.features import clip_cache

    found = clip_cache.prune(session.settings, names, apply=apply)
    text = f"{'deleted' if apply else 'would delete'} {len(found['files']):,} files, {found['bytes']:,} bytes; {found['kept']:,} stay"
    emit(session, found, text + ("" if apply else ". Repeat with --apply"))
    return 0
