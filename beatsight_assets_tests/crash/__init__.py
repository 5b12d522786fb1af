"""Kill and disk-full sweeps: one driver (`sweep.py`) for every writer."""
