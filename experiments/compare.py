"""Compare runs, parity records or evaluations: one page that says whether the frameworks agree.

    python3 -m duet compare runs=[outputs/demo/torch,outputs/demo/tf] out=outputs/report
    python3 -m duet compare traces=[outputs/trace/torch,outputs/trace/tf] out=outputs/report
    python3 -m duet compare evaluations=[outputs/a,outputs/b,outputs/c] out=outputs/report

Any number of directories can be compared; every pair of runs and of records is checked. The command reads files, loads
no framework, and exits with code 1 if a check fails, as `diff` does. `crossed` names samples that one framework drew
from another's checkpoint (`experiments.sample`); the hash of the weights says which checkpoint that was. `evaluations`
are directories of `experiments.evaluate`; a row of the table compares numbers with the same protocol.
"""

from __future__ import annotations

import sys
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.comparison.build import compare
from experiments.comparison.verdict import describe_rungs
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.report import write
from experiments.report.comparison import difference_lines


@command("compare", result=("report.html", "a report"))
def main(cfg: Any) -> None:
    """Compare, and write report.html and report.json."""
    options = plain(cfg)
    out = options.pop("out")
    for key in ("runs", "traces"):
        if len(options[key]) == 1:
            raise DuetError(f"{key}: 1 directory was given; give at least two, as in {key}=[DIR,DIR]")
    if not (options["runs"] or options["traces"] or options["evaluations"]):
        raise DuetError("compare: nothing was given; add runs=[RUN,RUN], traces=[DIR,DIR] or evaluations=[DIR,DIR]")
    if options["crossed"] and not options["runs"]:
        raise DuetError("crossed: samples were given without runs; add runs=[RUN,RUN]")
    with heartbeat("comparing", says_end=False):
        comparison = compare(**options)
    page = write(comparison.report, comparison.images, out)
    for line in difference_lines(comparison.report["quality"]) if options["evaluations"] else ():
        print(line)
    if comparison.agree is None:
        sentence = comparison.report["verdict"]["sentence"]
        print(f"No verdict: {sentence[0].lower()}{sentence[1:]}\npage: {page}")
        return
    if comparison.different:
        print(f"the runs are different experiments; they differ in {', '.join(comparison.different)}")
    verdict = "agree" if comparison.agree else "DO NOT agree"
    print(
        f"{comparison.passed:,} of {pluralize(len(comparison.checks), 'check')} passed "
        f"({describe_rungs(comparison.checks)}); {comparison.report['verdict']['subject']} {verdict}: {page}"
    )
    if not comparison.agree:
        sys.exit(1)


if __name__ == "__main__":
    main()
