"""Tasks, one file each; `dataset_builders.catalog.load_task` finds whatever stands here."""
