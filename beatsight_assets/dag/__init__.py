"""Dagster's view of the platform: what exists, what must hold, what starts when.

Belongs here: everything that imports dagster. Does not belong here: work on data; every asset is one call of a stage function,
and every check reads the verdict that the stage left in its receipt.
"""
