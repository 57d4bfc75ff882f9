"""Answer a question with many runs: plan them, run what is missing in every environment, and write a report.

    python3 -m duet study study=framework_equivalence dry_run=true      # the table of runs, and nothing else
    python3 -m duet study study=framework_equivalence hydra.launcher.workers=2
    python3 -m duet study study=solver_steps hydra/launcher=joblib      # or submitit_slurm, with the extra sweeps

A study file in `configs/study` states factors with their settings, seeds, metrics with margins, and the baseline; see
`experiments.studies.plan`. Jobs that are done are not repeated: the same command resumes a study that was stopped, and
a study that gains a seed or a setting runs only what is new. If a job fails, the report says so, the other jobs run,
and the exit code is 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from diffusion_core.common.text import pluralize
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.studies import jobs
from experiments.studies.looks import next_look
from experiments.studies.plan import Plan, make_plan, make_study
from experiments.studies.report import report
from experiments.studies.results import check_reads, outcomes


@command("study")
def main(cfg: Any) -> None:
    """Plan, run and report; with `job=NAME`, run one job only."""
    options = plain(cfg)
    if options["job"] is not None:
        sys.exit(jobs.perform_named(options))
    plan, runs = make_plan(make_study(options["study"])), jobs.runs_directory(options["out"])
    check_reads(plan.study)
    look = next_look(plan.study, runs.parent)  # refuses another plan of looks before anything runs
    jobs.check(plan)
    print(table(plan, runs))
    if plan.study.looks:
        print(look.remark or f"Look at all {look.planned} planned seeds, the only one")
    if options["dry_run"]:
        return
    jobs.launch(plan, runs)
    page, content = report(plan, outcomes(plan, runs), runs.parent)
    print(f"{content['verdict']['claim']}. {content['verdict']['sentence']}")
    for remark in content["remarks"]:
        print(remark)
    for line in content["excludes"]:
        print(f"  {line['metric']}, {' and '.join(line['pairs'])}: {line['text']}")
    print(f"report: {page}")
    unfinished = [job for job in plan.jobs if jobs.job_state(job, runs).status != "done"]
    if unfinished:
        count = f"{len(unfinished)} of {pluralize(len(plan.jobs), 'job')}"
        print(f"{count} are not done; see log.txt in their folders: {runs}")
        sys.exit(1)


def table(plan: Plan, runs: Path) -> str:
    """Return a table of every run with the state of its jobs."""
    status = {job.identity: jobs.job_state(job, runs).status for job in plan.jobs}
    stages = [stage for stage, *_ in plan.study.stages]
    rows = [["arm", "seed", *stages]]
    for run in plan.runs:
        rows.append([run.arm.name, str(run.seed), *(f"{job.name} ({status[job.identity]})" for job in run.jobs)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = Counter(status.values())
    states = ", ".join(f"{count[name]} {name}" for name in ("done", "failed", "unfinished", "missing") if count[name])
    shared = sum(len(run.jobs) for run in plan.runs) - len(plan.jobs)
    between = f", {shared} shared between arms" if shared else ""
    total = f"{pluralize(len(plan.runs), 'run')} of {pluralize(len(plan.jobs), 'job')}{between}: {states}"
    return "\n".join([plan.study.title, *lines, total])


if __name__ == "__main__":
    main()
