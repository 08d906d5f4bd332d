"""Builders of tool-trajectory datasets. One file is one task; nothing else needs editing.

The file `addition.py` holds the class `Addition`, a `dataset_builders.task.Task`.
"""
