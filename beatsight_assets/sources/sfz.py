"""SFZ, the part of it that says which sample sounds on which key at which velocity.

Belongs here: text to regions, inheritance, sample paths that stay below the kit's folder. Does not belong here: what a key means (kits),
sound (render).

Read       <control> default_path; <global> <master> <group> <region>; the opcodes of `OPCODES`; #define; // comments; CRLF; Windows paths;
           file names with blanks
Counted    every other opcode and header, by name (`ignored`); regions without a sample of their own (`*sine`, `*silence`)
Refused    #include; a number that is none; a range that is empty; a path that leaves the kit's folder
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from beatsight_assets.errors import InputError
from beatsight_assets.store import contain, is_plain_path, printable, read_bytes

MAX_BYTES = 4 * 1024 * 1024  # the largest of the five AVL maps has 0.01 MB
MAX_REGIONS = 100_000
OPCODES = ("key", "lokey", "hikey", "lovel", "hivel", "sample", "pan", "volume", "tune", "offset", "loop_mode", "group", "off_by", "offby",
           "off_mode")  # fmt: skip
LEVELS = ("global", "master", "group", "region")  # each inherits from those before it
LOUDEST = 127
_DEFINE = re.compile(r"#define[ \t]+(\$\w+)[ \t]+(\S+)")
_TOKEN = re.compile(r"<(\w+)>|(\$?\w+)=")
_NOTE = re.compile(r"([a-g])([#b]?)(-?\d+)", re.IGNORECASE)
_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


@dataclass(frozen=True, slots=True)
class Region:
    """One sample and when it sounds: keys and velocities are inclusive; `group` stops what names it in `off_by`.

    `sample` : path below the kit's folder; `pan` -100 left .. 100 right; `volume_db`; `tune_cents`; `offset` in samples of the file
    """

    line: int
    sample: str
    lokey: int
    hikey: int
    lovel: int
    hivel: int
    pan: float = 0.0
    volume_db: float = 0.0
    tune_cents: float = 0.0
    offset: int = 0
    loop_mode: str = ""
    group: int = 0
    off_by: int = 0
    off_mode: str = "fast"

    @property
    def states_velocity(self) -> bool:
        """The map tells soft from loud here; the whole range says nothing."""
        return (self.lovel, self.hivel) != (1, LOUDEST) and (self.lovel, self.hivel) != (0, LOUDEST)

    @property
    def velocity(self) -> float:
        """Centre of the velocity range over 127."""
        return (self.lovel + self.hivel) / 2 / LOUDEST


@dataclass(frozen=True)
class SfzFile:
    """Regions in file order and what was passed over, by name."""

    path: str
    regions: tuple[Region, ...]
    ignored: Mapping[str, int]

    def missing(self, kit: Path) -> list[str]:
        """Samples that are named and not there, sorted."""
        return sorted({r.sample for r in self.regions if not contain(kit, r.sample).is_file()})


def read_sfz(kit: Path, relpath: str) -> SfzFile:
    """An SFZ file of a kit; every sample lies below the kit's folder.

    Raises
    ------
    InputError `bad-metadata` : not SFZ as far as it is read here; names the line
    InputError `path-escape` : the file, or a sample in it, leads out of the kit's folder
    InputError : those of `store.read_bytes`
    """
    content = read_bytes(contain(kit, relpath), max_bytes=MAX_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # maps of the years before UTF-8; only file names can differ, and then they are missing
    return parse_sfz(text, relpath)


def parse_sfz(text: str, relpath: str = "kit.sfz") -> SfzFile:
    """Regions of SFZ text that lies at `relpath` below its kit; the file system is not touched. Raises as `read_sfz`.

    >>> [(r.lokey, r.velocity * 127, r.sample) for r in parse_sfz("<group> key=c2 <region> hivel=63 sample=a b.wav").regions]
    [(36, 32.0, 'a b.wav')]
    """
    where = printable(relpath)
    open_levels: dict[str, dict[str, tuple[str, int]]] = {level: {} for level in LEVELS}
    defines: dict[str, str] = {}
    default_path, header = "", ""
    regions: list[Region] = []
    ignored: Counter[str] = Counter()

    def close_region() -> None:
        if header != "region":
            return
        opcodes = {k: v for level in LEVELS for k, v in open_levels[level].items()}
        sample, line = opcodes.get("sample", ("", number))
        if not sample or sample.startswith("*"):
            ignored["region without a sample"] += 1
            return
        if len(regions) >= MAX_REGIONS:
            raise InputError(f"more than {MAX_REGIONS:,} regions", code="resource-limit", where=where)
        regions.append(_region(opcodes, _sample_path(relpath, default_path + sample, f"{where}:{line}"), where))

    number = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("//")[0]
        if line.lstrip().startswith("#include"):
            raise InputError("#include is not read. Join the files into one", code="bad-metadata", where=f"{where}:{number}")
        for name, value in _DEFINE.findall(line):
            defines[name] = value
        line = _DEFINE.sub(" ", line)
        for name in sorted(defines, key=len, reverse=True):
            line = line.replace(name, defines[name])
        tokens = list(_TOKEN.finditer(line))
        for i, token in enumerate(tokens):
            if token[1]:
                close_region()
                header = token[1].lower()
                if header in LEVELS:
                    for level in LEVELS[LEVELS.index(header) :]:
                        open_levels[level] = {}
                elif header != "control":
                    ignored[f"<{header}>"] += 1
                continue
            value = line[token.end() : tokens[i + 1].start() if i + 1 < len(tokens) else len(line)].strip()
            name = token[2].lower()
            if header == "control" and name == "default_path":
                default_path = value
            elif header in LEVELS and name in OPCODES:
                open_levels[header][name] = (value, number)
            else:
                ignored[name] += 1
    close_region()
    return SfzFile(relpath, tuple(regions), dict(sorted(ignored.items())))


def _region(opcodes: Mapping[str, tuple[str, int]], sample: str, where: str) -> Region:
    def number(name: str, default: float, low: float, high: float) -> float:
        if name not in opcodes:
            return default
        text, line = opcodes[name]
        note = _NOTE.fullmatch(text) if name.endswith("key") else None
        try:
            value = float(text) if note is None else _note_number(note)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # NaN is not
            raise InputError(f"{name}={printable(text)[:40]}; {low:g}..{high:g} is read", code="bad-metadata", where=f"{where}:{line}")
        return value

    key = number("key", -1, -1, LOUDEST)
    lokey, hikey = (int(number(n, key if key >= 0 else d, -1, LOUDEST)) for n, d in (("lokey", 0), ("hikey", LOUDEST)))
    lovel, hivel = int(number("lovel", 1, 0, LOUDEST)), int(number("hivel", LOUDEST, 0, LOUDEST))
    line = opcodes["sample"][1]
    if hikey >= 0 and (lokey > hikey or lovel > hivel):
        raise InputError(
            f"keys {lokey}..{hikey}, velocities {lovel}..{hivel}: an empty range never sounds", code="bad-metadata", where=f"{where}:{line}"
        )
    off_by = "off_by" if "off_by" in opcodes else "offby"
    return Region(
        line, sample, lokey, hikey, lovel, hivel,
        pan=number("pan", 0.0, -100, 100),
        volume_db=number("volume", 0.0, -144, 48),
        tune_cents=number("tune", 0.0, -9600, 9600),
        offset=int(number("offset", 0, 0, 2**32 - 1)),
        loop_mode=opcodes.get("loop_mode", ("", 0))[0],
        group=int(number("group", 0, -(2**31), 2**32 - 1)),
        off_by=int(number(off_by, 0, -(2**31), 2**32 - 1)),
        off_mode=opcodes.get("off_mode", ("fast", 0))[0],
    )  # fmt: skip


def _note_number(note: re.Match[str]) -> int:
    return _SEMITONES[note[1].lower()] + {"": 0, "#": 1, "b": -1}[note[2]] + 12 * (int(note[3]) + 1)


def _sample_path(relpath: str, sample: str, where: str) -> str:
    """Path below the kit's folder of a sample that an SFZ file names from its own folder; `..` may climb no higher than the kit."""
    path = sample.replace("\\", "/")
    full = posixpath.normpath(posixpath.join(posixpath.dirname(relpath), path))
    if path.startswith(("/", "~")) or path[1:2] == ":" or not is_plain_path(full):
        raise InputError(f"sample {printable(sample)[:120]!r} does not lie below the kit's folder", code="path-escape", where=where)
    return full
