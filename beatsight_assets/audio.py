"""Audio files: does the whole file decode and make sense, and its samples as mono float32.

Belongs here: opening, full decode in blocks, the limits of `reliability.md` section 5, mono fold, resampling, finding a file under
another suffix, 16-bit wav bytes. Does not belong here: what is in the audio (`features`, `readiness`), writing files (`store`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from beatsight_assets.errors import InputError
from beatsight_assets.store import contain, open_regular
from beatsight_assets.units import Decibels, Seconds

BLOCK_FRAMES = 1 << 18  # 6 s at 44.1 kHz: memory does not depend on the length of the file
LOOK_FRAMES = 1 << 13  # what a look at the beginning reads at once
MIN_CONTENT_S = 0.01  # shorter audio may be equal by chance
SILENT_DBFS = -80.0  # a peak at or below this is silence (spec/events.md section 10)
FLOOR_DB = -200.0  # level of digital silence, so that no figure is infinite
RATE_RANGE_HZ = (4_000, 384_000)
MAX_CHANNELS = 64
MAX_HOURS = 2.0
LOSSLESS_TOLERANCE = 0.001  # share of the frames that a lossless file may lack, at least 1 frame (spec/bundle.md section 5 point 9)
LOSSY_TOLERANCE_S = 1.0  # encoders pad and count differently
FOLD_LIMIT_DB = 6.0  # a mono fold that loses more than this against the louder channel is worth a remark (ruling 3)
SUFFIXES = ("wav", "flac", "aif", "aiff", "ogg", "mp3")  # order in which a file is looked for (spec/sources.md section 0 rule 5)

_LOSSY = ("MPEG", "VORBIS", "OPUS", "ADPCM", "GSM", "G72")
_UNKNOWN_BYTES = (0, 0xFFFFFFFF)  # a streaming writer that never came back to fill in the length


class AudioError(InputError):
    """Audio that is not read; `code` is one of `spec/events.md` section 10."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What decoding a whole file found out; `n_frames` are frames read, not frames promised."""

    rate_hz: int
    n_channels: int
    n_frames: int
    peak_dbfs: Decibels  # -200 for digital silence
    subtype: str  # of libsndfile: PCM_16, VORBIS ..

    @property
    def duration_s(self) -> Seconds:
        return self.n_frames / self.rate_hz

    @property
    def is_silent(self) -> bool:
        return self.peak_dbfs <= SILENT_DBFS


@dataclass(frozen=True, slots=True)
class AudioClip:
    """Mono samples, float32 [shape=(n_samples,)], full scale 1. `fold_loss_db` > 6 means the channels cancel each other."""

    samples: NDArray[np.float32]
    rate_hz: int
    fold_loss_db: Decibels  # level of the loudest channel over that of the mean, 0 for mono, at most 200
    info: AudioInfo  # of the file as it lies, before folding and resampling


def probe(path: Path, *, silent_ok: bool = False) -> AudioInfo:
    """Decode a whole file and say what it holds; the header alone lies.

    `silent_ok` leaves silence to the caller (`is_silent`): a stem whose onsets all lie past its end is no damage.

    Raises
    ------
    AudioError : empty-file, unreadable-audio, empty-audio, truncated-audio, silent-audio, non-finite-audio, resource-limit,
        changed-while-reading
    """
    return _decode(path, lambda block: None, silent_ok=silent_ok)


def has_content(path: Path) -> bool:
    """Whether equal bytes mean equal recordings: False for silence (also with an offset), less than 10 ms, and what cannot be decoded.

    Reads no further than the first block in which something is heard.
    """
    low, high, n_frames = math.inf, -math.inf, 0
    try:
        with soundfile.SoundFile(path) as file:
            while len(block := file.read(LOOK_FRAMES, dtype="float32", always_2d=True)):
                n_frames += len(block)
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                if high - low > 10 ** (SILENT_DBFS / 20) and n_frames >= MIN_CONTENT_S * file.samplerate:
                    return True
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError, MemoryError):
        return False
    return False


def stated_duration_s(path: Path) -> Seconds:
    """Length that the header claims, 0 where it cannot be read: enough to tell a loop from a hit, never to cut by."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, ValueError):
        return 0.0
    return float(info.frames / info.samplerate) if info.samplerate else 0.0


def read_mono(path: Path, rate_hz: int | None = None, *, silent_ok: bool = False) -> AudioClip:
    """A whole file as mono: plain mean of the channels, then soxr HQ to `rate_hz` (None: as it is).

    Raises
    ------
    AudioError : as `probe`
    """
    folded: list[NDArray[np.float32]] = []
    squares: list[NDArray[np.float64]] = []

    def fold(block: NDArray[np.float32]) -> None:
        mean = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0].copy()
        folded.append(mean)
        if block.shape[1] > 1:
            squares.append(np.append((block.astype(np.float64) ** 2).sum(axis=0), (mean.astype(np.float64) ** 2).sum()))

    info = _decode(path, fold, silent_ok=silent_ok)
    samples = np.concatenate(folded)
    fold_loss_db = 0.0
    if squares:
        *channels, mono = np.sum(squares, axis=0).tolist()
        fold_loss_db = min(-FLOOR_DB, 10 * math.log10(max(channels) / mono)) if mono else -FLOOR_DB if max(channels) else 0.0
    return AudioClip(resample(samples, info.rate_hz, rate_hz or info.rate_hz), rate_hz or info.rate_hz, fold_loss_db, info)


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """Whole recordings with soxr HQ (alias -135 dB); float32 [shape=(n,)] -> float32 [shape=(about n * to / from,)]."""
    if from_hz == to_hz:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, from_hz, to_hz, quality="HQ"), dtype=np.float32)


def find_audio(roots: Sequence[Path], relpath: str) -> Path | None:
    """First existing file of that name below the roots in their order; in each root the suffix as given comes first, then `SUFFIXES`.

    Raises
    ------
    InputError `path-escape` : `relpath` is not a plain relative path, or a link leads out of a root
    """
    stem, dot, suffix = relpath.rpartition(".")
    is_known = bool(dot) and suffix.lower() in SUFFIXES
    names = [relpath, *(f"{stem if is_known else relpath}.{s}" for s in (*SUFFIXES, *(s.upper() for s in SUFFIXES)))]
    for root in roots:
        for name in names:
            path = contain(root, name)
            if path.is_file():
                return path
    return None


def write_wav(samples: NDArray[np.floating | np.int16], rate_hz: int) -> bytes:
    """A 16-bit PCM wav file with a plain 44-byte header; equal input gives equal bytes.

    Parameters
    ----------
    samples : float [shape=(n,) or (n, n_channels)], full scale 1, clipped and rounded without dither; or int16, taken as they are

    Raises
    ------
    AudioError : non-finite-audio; resource-limit, 4 GiB or more
    """
    if samples.dtype != np.int16:
        if not np.isfinite(samples).all():
            raise AudioError("samples hold NaN or infinity", code="non-finite-audio")
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    body = np.ascontiguousarray(samples, dtype="<i2").tobytes()
    if len(body) > 0xFFFFFFFF - 36:
        raise AudioError("a wav file holds less than 4 GiB", code="resource-limit")
    frame_bytes = 2 * (1 if samples.ndim == 1 else samples.shape[1])
    fields = ((16, 4), (1, 2), (frame_bytes // 2, 2), (rate_hz, 4), (rate_hz * frame_bytes, 4), (frame_bytes, 2), (16, 2))
    form = b"".join(value.to_bytes(size, "little") for value, size in fields)
    return b"RIFF" + (36 + len(body)).to_bytes(4, "little") + b"WAVEfmt " + form + b"data" + len(body).to_bytes(4, "little") + body


def _decode(path: Path, take: Callable[[NDArray[np.float32]], None], *, silent_ok: bool) -> AudioInfo:
    """Hand every block [shape=(n, n_channels)] to `take` and judge what was read."""
    blocks = read_blocks(path, silent_ok=silent_ok)
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            info: AudioInfo = end.value
            return info
        take(block)


def read_blocks(path: Path, *, silent_ok: bool = False) -> Generator[NDArray[np.float32], None, AudioInfo]:
    """Every block of a file, float32 [shape=(n, n_channels)], full scale 1; what was read is judged after the last one.

    Raises
    ------
    AudioError : as `probe`, also after the last block: until then nothing of what was read may be used
    """
    if not path.is_file():
        raise AudioError("there is no such file, or it is a folder, a FIFO or a device", code="unreadable-audio", where=path.name)
    n_bytes = path.stat().st_size
    if n_bytes == 0:
        raise AudioError("the file has 0 bytes", code="empty-file", where=path.name)
    n_read, peak = 0, 0.0
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, n_channels, promised = file.samplerate, file.channels, file.frames
            subtype, container = file.subtype, file.format
            _check_header(path, rate_hz, n_channels, promised)
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                n_read += len(block)
                block_peak = float(np.abs(block).max())  # NaN wins a maximum, so this finds it too
                peak = max(peak, block_peak)
                if not math.isfinite(block_peak):
                    raise AudioError(f"NaN or infinity among the first {n_read:,} samples", code="non-finite-audio", where=path.name)
                _check_header(path, rate_hz, n_channels, n_read)
                yield block
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError, MemoryError) as error:
        # libsndfile's text repeats the absolute path of the file; what follows the last colon is its reason.
        reason = str(error).rpartition(": ")[2]
        raise AudioError(f"decoding fails after {n_read:,} frames: {reason}", code="unreadable-audio", where=path.name) from error
    if n_read == 0:
        raise AudioError("the file holds 0 frames", code="empty-audio", where=path.name)
    promised = max(promised, round(n_read * _promised_share(path, container, n_bytes)))
    is_lossy = container == "MP3" or any(word in subtype for word in _LOSSY)
    tolerance = LOSSY_TOLERANCE_S * rate_hz if is_lossy else max(1.0, LOSSLESS_TOLERANCE * promised)
    if promised - n_read > tolerance:
        raise AudioError(f"{n_read:,} frames were read of {promised:,} in the header", code="truncated-audio", where=path.name)
    if path.stat().st_size != n_bytes:
        raise AudioError("the file grew or shrank while it was read", code="changed-while-reading", where=path.name)
    info = AudioInfo(rate_hz, n_channels, n_read, 20 * math.log10(max(peak, 10 ** (FLOOR_DB / 20))), subtype)
    if info.is_silent and not silent_ok:
        raise AudioError(
            f"peak is {info.peak_dbfs:.0f} dBFS; a recording is louder than {SILENT_DBFS:.0f} dBFS", code="silent-audio", where=path.name
        )
    return info


def _check_header(path: Path, rate_hz: int, n_channels: int, n_frames: int) -> None:
    if not RATE_RANGE_HZ[0] <= rate_hz <= RATE_RANGE_HZ[1] or not 1 <= n_channels <= MAX_CHANNELS:
        message = f"{rate_hz} Hz, {n_channels} channels; {RATE_RANGE_HZ[0]}..{RATE_RANGE_HZ[1]} Hz and 1..{MAX_CHANNELS} channels are read"
        raise AudioError(message, code="unreadable-audio", where=path.name)
    if n_frames > MAX_HOURS * 3600 * rate_hz:
        raise AudioError(f"{n_frames / rate_hz / 3600:.1f} h; at most {MAX_HOURS:.0f} h are read", code="resource-limit", where=path.name)


@dataclass(frozen=True, slots=True)
class PcmPlace:
    """Where the samples of a plain 16-bit PCM wav file lie."""

    offset_bytes: int
    n_frames: int
    n_channels: int
    rate_hz: int


def pcm16_place(path: Path) -> PcmPlace | None:
    """Place of the samples of a little-endian 16-bit PCM wav that is all there and within the limits; None for any other file."""
    if not path.is_file():
        return None
    form = b""
    with open_regular(path) as handle:
        magic = handle.read(12)
        if magic[:4] != b"RIFF" or magic[8:] != b"WAVE":
            return None
        position, n_bytes = 12, os.fstat(handle.fileno()).st_size
        while len(head := os.pread(handle.fileno(), 8, position)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"fmt ":
                form = os.pread(handle.fileno(), 16, position + 8)
            if head[:4] == b"data":
                break
            position += 8 + size + (size & 1)
        else:
            return None
    tag, n_channels, rate_hz = (int.from_bytes(form[i:j], "little") for i, j in ((0, 2), (2, 4), (4, 8)))
    frame_bytes, bits = int.from_bytes(form[12:14], "little"), int.from_bytes(form[14:16], "little")
    n_frames = size // (2 * n_channels) if n_channels else 0
    is_plain = tag == 1 and bits == 16 and frame_bytes == 2 * n_channels and size == n_frames * frame_bytes
    is_whole = 0 < n_frames <= MAX_HOURS * 3600 * rate_hz and position + 8 + size <= n_bytes
    if not (is_plain and is_whole and RATE_RANGE_HZ[0] <= rate_hz <= RATE_RANGE_HZ[1] and n_channels <= MAX_CHANNELS):
        return None
    return PcmPlace(position + 8, n_frames, n_channels, rate_hz)


def promised_share(path: Path) -> float:
    """Bytes of sound that the header of a wav or aiff file announces over those that are there, 1 for other containers and unreadable ones."""
    try:
        container = str(soundfile.info(str(path)).format)
    except (soundfile.SoundFileError, RuntimeError, TypeError, OSError):
        return 1.0
    return _promised_share(path, container, path.stat().st_size)


def _promised_share(path: Path, container: str, n_bytes: int) -> float:
    """Bytes of sound the chunk header of a wav or aiff file announces, over those behind it in the file.

    libsndfile quietly shortens `frames` to what is there, so a cut wav file would look whole. 1 where nothing is lacking or the
    container is another (there the decoder notices).
    """
    if container not in ("WAV", "WAVEX", "RF64", "AIFF"):
        return 1.0
    with open_regular(path) as handle:
        magic = handle.read(12)
        order, wanted = ("little", b"data") if magic[:4] in (b"RIFF", b"RF64") else ("big", b"SSND" if container == "AIFF" else b"data")
        position, long_bytes = 12, 0
        while len(head := os.pread(handle.fileno(), 8, position)) == 8:
            size = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
            if head[:4] == b"ds64":
                long_bytes = int.from_bytes(os.pread(handle.fileno(), 8, position + 16), "little")
            if head[:4] == wanted:
                size = long_bytes if size == 0xFFFFFFFF and long_bytes else size
                there = n_bytes - position - 8
                return size / there if there > 0 and size > there and size not in _UNKNOWN_BYTES else 1.0
            position += 8 + size + (size & 1)
    return 1.0
