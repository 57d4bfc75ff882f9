"""Studies: an experimental question as a table of runs, and the answer as a report."""
