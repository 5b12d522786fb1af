"""May this candidate be released? Boundary, open-set, bootstrap and calibration gates on its predictions, alignment on audio."""
