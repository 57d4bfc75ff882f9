"""Certify a run: one file that says what it claims, with the hash chain that the claims follow from.

    python3 -m duet certify RUN
    python3 -m duet certify RUN out=paper/certificate.json

RUN is the directory of a run. Its record is checked first: the chain of its manifest and the hashes of all files. The
certificate is written to RUN/certificate.json or out=FILE; publish it with the paper. The command `verify` compares a
run with it, and computes the run again. See docs/certify.md.
"""

from __future__ import annotations

from experiments.config.entry import Config, command
from experiments.verification.certify import certify


@command("certify")
def main(cfg: Config) -> None:
    """Check the record of a run, and write its certificate."""
    print("\n".join(certify(cfg.run, cfg.out)))


if __name__ == "__main__":
    main()
