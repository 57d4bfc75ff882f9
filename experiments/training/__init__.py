"""Training a model into a run directory, resuming it, and replaying a step that was not finite.

    setup        everything that a training needs, as one frozen dataclass
    run          the run itself: train, sample, evaluate, write the run directory
    callbacks    what the run writes while it trains
    resume       which checkpoint a run starts from, and what must not change when it is resumed
    evaluation   the evaluation of the final samples
    trackers     services that a run reports to
    replay       a stored non-finite step, computed again

It takes frozen dataclasses and knows no configuration, so a notebook can call it.
"""
