"""`beatsight features`: the cache of spectrograms."""

from __future__ import annotations

from beatsight_assets.cli.common import Session, command, finish


@command("warm", help="Compute the features of every recording with audio; what is cached is kept.")
def warm_command(session: Session) -> int:
    from beatsight_assets.features.cache import FeatureOptions, run

    return finish(session, run(session.settings, FeatureOptions(), progress=session.progress))
