"""The processes, files and reports of `duet diff`."""
