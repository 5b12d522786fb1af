"""Models that hear drums: network, training, decoding, evaluation, predictions.

Belongs here: everything that needs torch. Does not belong here: spectrograms (`features`), gates over predictions (`readiness`), writing
scores and MIDI (`transcribe`). torch is imported inside functions, so importing these modules is cheap.
"""

from __future__ import annotations
