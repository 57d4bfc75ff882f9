"""What `experiments.evaluate` can measure: one file per group of metrics."""
