"""One key for one song, whatever a dataset calls it: MUSDB, MedleyDB, MDB Drums and Cambridge hold the same takes.

Belongs here: artist and title to a group key. Does not belong here: where a dataset writes them (the source modules).
"""

from __future__ import annotations

import re
import unicodedata

_CUT = re.compile(r"[\s_-]*\b(full|preview|edit|excerpt)\b[\s_-]*$", re.IGNORECASE)  # what download pages append to a title


def song_group(artist: str, title: str) -> str:
    """Group of a song (`spec/sources.md` section 0, rule 1).

    >>> song_group("Music Delta", "80s Rock"), song_group("MusicDelta", "80sRock")
    ('song:musicdelta|80srock', 'song:musicdelta|80srock')
    >>> song_group("Actions", "OneMinuteSmile_Full"), song_group("Actions", "One Minute Smile")
    ('song:actions|oneminutesmile', 'song:actions|oneminutesmile')
    """
    return f"song:{name_key(artist)}|{name_key(_CUT.sub('', title.replace('_', ' ')))}"


def name_key(name: str) -> str:
    """`&` is `and`; accents, case and everything that is no letter or digit do not count.

    >>> name_key("Beyoncé & Søn's")
    'beyonceandsns'
    """
    plain = unicodedata.normalize("NFKD", name.replace("&", "and")).casefold()
    return re.sub(r"[^a-z0-9]", "", plain)
