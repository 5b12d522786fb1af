"""From the event tables of all datasets to one table that says what is played where, and which split it belongs to."""
