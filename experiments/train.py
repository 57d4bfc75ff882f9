"""Train a diffusion model.

    python3 -m duet train backend=tf experiment=digits
    python3 -m duet launch 2 train backend=torch parallel=ddp experiment=digits
    python3 -m duet launch 2 train backend=tf parallel=multiworker experiment=digits
    python3 -m duet train -m backend=torch,tf seed=0,1
    python3 -m duet train backend=torch experiment=digits resume=latest hydra.run.dir=outputs/demo/tf

The whole configuration is checked before a framework is loaded and before anything is written.
"""

from __future__ import annotations

import math

from experiments.config import build
from experiments.config.convert import plain
from experiments.config.entry import Config, command
from experiments.config.resume_command import output_directory, run_record
from experiments.training.run import removed_if_refused, train
from experiments.training.trackers import TRACKERS, make_tracker


@command("train", options={"tracker": TRACKERS})
def main(cfg: Config) -> float:
    """Train, sample and write the run directory; return the mean loss of the last logged steps."""
    with removed_if_refused(directory := output_directory()):
        setup = build.training_setup(cfg)
        result = train(
            setup,
            directory,
            resume=cfg.resume,
            change_objective=cfg.change_objective,
            change_data=cfg.change_data,
            evaluation=build.final_evaluation(cfg, setup),
            tracker=make_tracker(plain(cfg.tracker)),
            record=run_record(cfg, directory, setup.group),
        )
    return math.nan if result is None else result["objective"]


if __name__ == "__main__":
    main()
