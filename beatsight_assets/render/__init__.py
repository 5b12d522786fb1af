"""Sound that the platform makes itself: synthesised kits, musical takes, sounds that are no drums, and the demo data set."""
