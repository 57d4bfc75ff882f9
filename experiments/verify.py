"""Verify a run: check its record, compute drawn segments again, in either framework, and give a verdict.

    python3 -m duet verify RUN
    python3 -m duet verify RUN segments=all
    python3 -m duet verify RUN backend=tf segments=5
    python3 -m duet verify certificate.json data.options.path=FOLDER

RUN is the directory of a run, or a certificate (`python3 -m duet certify`). The chain of its manifest and the hashes of
all files are checked; segments between checkpoints are drawn by a fresh seed (or draw_seed=N), trained again from their
first state and compared; then the final samples are drawn and evaluated again. The verdict is one of

    BIT-EXACT      every bit is that of the record
    WITHIN         some bits differ, within a bound measured by twins that start one unit in the last place away
    DIFFERS        something contradicts the record; the first difference is named
    NOT REPLAYED   nothing contradicts the record, and nothing could be computed again

with the probability that a change in some of the segments would have been found. Bits must be equal in the same
framework and version, on the same kind of processor with as many threads. The verdict is written to RUN/verdicts or
out=FILE. The exit code is 0 for the first two and 1 for the others. See docs/certify.md.
"""

from __future__ import annotations

import sys

from experiments.config.entry import Config, command
from experiments.config.verification import verification
from experiments.verification.verify import verify


@command("verify")
def main(cfg: Config) -> None:
    """Verify, print the findings, and write the verdict."""
    request = verification(cfg)
    verdict = verify(request.run, request.make, request.options, request.problems)
    print("\n".join(verdict.lines()), flush=True)
    print(f"written: {request.write(verdict)}")
    if not verdict.is_success:
        sys.exit(1)


if __name__ == "__main__":
    main()
