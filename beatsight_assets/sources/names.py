"""What the name of an audio file says: component, whole kit, other instrument, or nothing (`spec/events.md` section 8, "File names").

Belongs here: names to labels, for multitracks and sample packs. The words are data: configs/file_names.yaml. Does not belong here: folder
names, which never count, and what a module does with a file that is no drum.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from beatsight_assets import safeyaml
from beatsight_assets.errors import ConfigError
from beatsight_assets.settings import SHIPPED_CONFIGS
from beatsight_assets.taxonomy import DRUM_MIX, Taxonomy, Voice

CONFIG = "file_names"  # configs/<this>.yaml
MAX_PHRASE = 4  # tokens
CODES = {"ambiguous": "ambiguous-file-name", "unknown": "unknown-label"}  # kinds that are refused -> quarantine code


class NamesFile(BaseModel):
    """configs/file_names.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    words: dict[str, tuple[str, ...]]
    labels: dict[str, tuple[str, ...]]
    one_shots: dict[str, tuple[str, ...]]
    whole_kit: tuple[str, ...]
    whole_kit_positions: dict[str, tuple[str, ...]]
    positions: dict[str, tuple[str, ...]]
    not_drums: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """What a file name says.

    kind : component, drum_mix, not_drums, ambiguous or unknown; the first two have a `voice`
    rule : the phrases that decided, joined by ` + `; empty when nothing is known
    mic_position : canonical words such as `bottom` or `overhead left`, None without
    """

    kind: str
    voice: Voice | None
    rule: str
    mic_position: str | None

    @property
    def code(self) -> str | None:
        """Quarantine code of a name that says no one thing; None for the others."""
        return CODES.get(self.kind)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What one phrase stands for: at least one of the fields is set, or it is a word for the whole kit."""

    voice: Voice | None = None
    position: str | None = None
    is_whole_kit: bool = False
    is_not_drums: bool = False


class NameRules:
    """The table of phrases, checked: every phrase has one meaning, every label is a component."""

    def __init__(self, file: safeyaml.YamlFile, more_labels: Mapping[str, Any] | None = None) -> None:
        try:
            parsed = NamesFile.model_validate(file.data)
            if more_labels:
                lists = {label: (*parsed.labels.get(label, ()), *phrases) for label, phrases in more_labels.items()}
                parsed = NamesFile.model_validate(parsed.model_dump() | {"labels": dict(parsed.labels) | lists})
        except (ValidationError, TypeError) as failure:
            place: safeyaml.Place = ()
            message = str(failure)
            if isinstance(failure, ValidationError):
                first = failure.errors(include_url=False)[0]
                place, message = tuple(first["loc"]), first["msg"]
            raise ConfigError(f"{'.'.join(map(str, place))}: {message}", code="bad-config", where=file.where(place)) from failure
        self._file, self._words = file, parsed.words
        self._phrases: dict[tuple[str, ...], _Meaning] = {}
        for label, phrases in parsed.labels.items():
            self._add(self._phrases, phrases, _Meaning(voice=self._voice(label)), ("labels", label))
        self._add(self._phrases, parsed.whole_kit, _Meaning(is_whole_kit=True), ("whole_kit",))
        for position, phrases in parsed.whole_kit_positions.items():
            self._add(self._phrases, phrases, _Meaning(position=position, is_whole_kit=True), ("whole_kit_positions", position))
        for position, phrases in parsed.positions.items():
            self._add(self._phrases, phrases, _Meaning(position=position), ("positions", position))
        self._add(self._phrases, parsed.not_drums, _Meaning(is_not_drums=True), ("not_drums",))
        self._one_shots = dict(self._phrases)
        for label, phrases in parsed.one_shots.items():
            self._add(self._one_shots, phrases, _Meaning(voice=self._voice(label)), ("one_shots", label))

    def _voice(self, label: str) -> Voice:
        name, _, variant = label.partition("/")
        known = Taxonomy.shipped().labels
        if name not in known:
            raise ConfigError.unknown_choice("component", name, known, where=self._file.where(("labels", label)))
        return Voice(name, variant or None)

    def _add(
        self, table: dict[tuple[str, ...], _Meaning], phrases: tuple[str, ...], meaning: _Meaning, place: tuple[str | int, ...]
    ) -> None:
        for phrase in phrases:
            for words in product(*(self._words.get(word, (word,)) for word in phrase.split())):
                tokens = tuple(" ".join(words).split())
                if not 1 <= len(tokens) <= MAX_PHRASE or list(tokens) != split_name(" ".join(tokens), keep_number=True):
                    message = f"{phrase!r} must be 1 to {MAX_PHRASE} words of letters or digits in small letters"
                    raise ConfigError(message, code="bad-config", where=self._file.where(place))
                if table.get(tokens, meaning) != meaning:
                    raise ConfigError(f"{phrase!r} already means something else", code="bad-config", where=self._file.where(place))
                table[tokens] = meaning

    def find(self, tokens: list[str], *, one_shots: bool) -> list[tuple[str, _Meaning]]:
        """(phrase, meaning) of every phrase in the tokens, in their order; longer ones first come first served."""
        table = self._one_shots if one_shots else self._phrases
        found: dict[int, tuple[str, _Meaning]] = {}
        used: set[int] = set()
        for length in range(min(MAX_PHRASE, len(tokens)), 0, -1):
            for start in range(len(tokens) - length + 1):
                span = range(start, start + length)
                meaning = table.get(tuple(tokens[start : start + length]))
                if meaning is not None and used.isdisjoint(span):
                    found[start] = " ".join(tokens[start : start + length]), meaning
                    used.update(span)
        return [found[start] for start in sorted(found)]


def label_of(file_stem: str, rules: NameRules, *, one_shots: bool = False) -> Named:
    """What the name of a file (without its suffix and its folders) says.

    `one_shots` adds the phrases that mean something else in a multitrack session (`tom l`).

    >>> rules = shipped_rules()
    >>> [label_of(name, rules).kind for name in ("02_BassDI", "07_Bass Drum", "09_OH_L", "30_Owl", "08_KickSnare")]
    ['not_drums', 'component', 'drum_mix', 'unknown', 'ambiguous']
    >>> found = label_of("03_SnareTop", rules)
    >>> found.voice.label, found.rule, found.mic_position
    ('snare', 'snare', 'top')
    """
    found = rules.find(split_name(file_stem), one_shots=one_shots)
    named = [(phrase, m.voice) for phrase, m in found if m.voice is not None]
    others = [phrase for phrase, m in found if m.is_not_drums]
    position = " ".join(m.position for _, m in found if m.position) or None
    labels = {voice.label for _, voice in named}
    rule = " + ".join(dict.fromkeys([*(phrase for phrase, _ in named), *others]))
    if len(labels) > 1 or (labels and others):
        return Named("ambiguous", None, rule, position)
    if named:
        voice = min((v for _, v in named), key=lambda v: v.variant is not None)  # "crash" says more than "cymbals"
        return Named("component", voice, rule, position)
    if others:
        return Named("not_drums", None, rule, position)
    kit = [phrase for phrase, m in found if m.is_whole_kit]
    return Named("drum_mix", Voice(DRUM_MIX), " + ".join(kit), position) if kit else Named("unknown", None, "", position)


def split_name(name: str, *, keep_number: bool = False) -> list[str]:
    """Tokens of a name, case-folded: split at everything that is no letter or digit, at camel case, between letters and digits.

    A leading track number is dropped, unless it is all there is.

    >>> split_name("03_SnareTop"), split_name("HHat"), split_name("12 Tom1"), split_name("KICKIn"), split_name("TOMs"), split_name("7")
    (['snare', 'top'], ['h', 'hat'], ['tom', '1'], ['kick', 'in'], ['toms'], ['7'])
    """
    tokens = list(_tokens(unicodedata.normalize("NFKC", name)))
    return tokens[1:] if len(tokens) > 1 and tokens[0].isdecimal() and not keep_number else tokens


def _tokens(text: str) -> Iterator[str]:
    token = ""
    for i, char in enumerate(text):
        if token and (not char.isalnum() or _is_boundary(text, i)):
            yield token.casefold()
            token = ""
        if char.isalnum():
            token += char
    if token:
        yield token.casefold()


def _is_boundary(text: str, i: int) -> bool:
    """Whether a new token begins at `i`, given that the characters before and at `i` are letters or digits."""
    before, here = text[i - 1], text[i]
    if before.isdecimal() != here.isdecimal():
        return True
    if not here.isupper():
        return False
    tail = text[i + 1 : i + 3]
    is_plural = tail[:1] == "s" and not tail[1:].isalpha()  # TOMs
    return not before.isupper() or (tail[:1].islower() and not is_plural)  # snareTop, HHat


def rules_of(options: Mapping[str, Any]) -> NameRules:
    """The rules a dataset reads names by: the table that `ingest` handed over, else the shipped one, with the dataset's own `names`."""
    path = Path(options.get("configs", {}).get(CONFIG, SHIPPED_CONFIGS / f"{CONFIG}.yaml"))
    more = options.get("names") or {}
    if not isinstance(more, Mapping) or not all(isinstance(p, (list, tuple)) and all(isinstance(w, str) for w in p) for p in more.values()):
        raise ConfigError("option names: a list of phrases for each label, such as {kick: [ktrig]}", code="bad-option")
    return _rules(path, tuple((str(label), tuple(phrases)) for label, phrases in more.items()))


def shipped_rules() -> NameRules:
    """The rules that ship with the package."""
    return rules_of({})


@lru_cache(maxsize=8)
def _rules(path: Path, more: tuple[tuple[str, tuple[str, ...]], ...]) -> NameRules:
    return NameRules(safeyaml.read_yaml(path, name=f"configs/{CONFIG}.yaml"), dict(more))
