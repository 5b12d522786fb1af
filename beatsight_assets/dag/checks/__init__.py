"""Checks of assets: `table` says which there are, `judge` answers them from receipts. A check measures nothing itself."""
