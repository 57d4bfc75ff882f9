"""Ask a question of many runs: plan them, run what is missing in both environments, and report.

    python3 -m duet study study=framework_equivalence dry_run=true      # the table of runs, and nothing else
    python3 -m duet study study=framework_equivalence hydra.launcher.workers=2
    python3 -m duet study study=solver_steps hydra/launcher=joblib      # or submitit_slurm, with the extra sweeps

A study file in `configs/study` names factors with their levels, seeds, metrics with margins, and the baseline; see
`experiments.studies.plan`. A job that is done is not done again, so the same command goes on where it was stopped, and
a study that is widened by a seed or a level runs what is new. A job that fails is told in the report, the others
go on, and the exit code is then 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config.entry import command
from experiments.studies import jobs
from experiments.studies.plan import Plan
from experiments.studies.report import report
from experiments.studies.results import check_reads, outcomes


@command("study")
def main(cfg: DictConfig) -> None:
    """Plan, run and report."""
    if cfg.job is not None:
        sys.exit(jobs.task(cfg))
    plan, runs = jobs.plan_of(cfg), jobs.runs_of(cfg)
    check_reads(plan.study)
    jobs.check(plan)
    print(table(plan, runs))
    if cfg.dry_run:
        return
    given = HydraConfig.get().overrides
    own = [override for override in given.hydra if not override.startswith("hydra.mode=")]  # Hydra's, not a person's
    jobs.launch(plan, runs, [*own, *given.task])
    page, content = report(plan, outcomes(plan, runs), runs.parent)
    print(f"{content['verdict']['claim']}. {content['verdict']['sentence']}")
    for line in content["excludes"]:
        print(f"  {line['metric']}, {' and '.join(line['pairs'])}: {line['text']}")
    print(f"report: {page}")
    failed = [job for job in plan.jobs if jobs.state(job, runs).word != "done"]
    if failed:
        print(f"{len(failed)} of {len(plan.jobs)} jobs are not done; their log.txt says why: {runs}")
        sys.exit(1)


def table(plan: Plan, runs: Path) -> str:
    """Every run and how its jobs stand, for people."""
    words = {job.identity: jobs.state(job, runs).word for job in plan.jobs}
    stages = [stage for stage, *_ in plan.study.stages]
    rows = [["arm", "seed", *stages]]
    for run in plan.runs:
        rows.append([run.arm.name, str(run.seed), *(f"{job.name} ({words[job.identity]})" for job in run.jobs)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = Counter(words.values())
    stand = ", ".join(f"{count[word]} {word}" for word in ("done", "failed", "unfinished", "missing") if count[word])
    shared = sum(len(run.jobs) for run in plan.runs) - len(plan.jobs)
    told = f", {shared} shared between arms" if shared else ""
    return "\n".join([f"{plan.study.title}", *lines, f"{len(plan.runs)} runs of {len(plan.jobs)} jobs{told}: {stand}"])


if __name__ == "__main__":
    main()
