"""Is the manifest fit to train on? Figures, limits, one page for people, and the comparison with the release before."""
