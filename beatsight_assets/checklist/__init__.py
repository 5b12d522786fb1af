"""Checklists: what has to hold before and after the long steps, run in order, with one report.

Belongs here: running steps (`steps`), the limited export before the whole one (`smoke`). Does not belong here: any gate of its own.
"""
