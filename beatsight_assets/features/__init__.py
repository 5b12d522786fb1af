"""Spectral features: named definitions and the cache of recordings.

Belongs here: what a spectrogram is (`definitions`) and its cache on disk (`cache`). Does not belong here: labels, splits, networks.
"""

from __future__ import annotations
