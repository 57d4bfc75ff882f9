"""The files of a run.

`run_directory` has the metrics, events and configuration; `checkpoint` the state to resume from; `training_record`
what gives its weights their meaning; `ema_snapshots` the averages stored during training; `failure_bundle` a step that
was not finite.

May import: training, model, data, backend, files and below; not convert or metrics.
"""
