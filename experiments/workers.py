"""Start the processes of a run that computes with several on this machine, and stop them together.

    python3 -m duet launch 2 train backend=torch parallel=ddp experiment=digits
    python3 -m duet launch 2 sample backend=tf parallel=multiworker checkpoint=RUN out=DIR

The first argument is the number of processes, the others are the command. Each process finds its rank in environment
variables and sees one GPU, if the machine has any, of those in CUDA_VISIBLE_DEVICES if that is set. When one process
fails, the others are asked to stop, and its exit code is that of the whole.
"""

from __future__ import annotations

import os
import sys

from experiments.runtime.launch import environments, free_ports, run_together, visible_gpus


def main() -> None:
    """Start the processes, and exit with their code."""
    count, *words = sys.argv[1:] or [""]
    if not count.isdecimal() or int(count) < 1 or not words:
        usage = __doc__.splitlines()[2]
        print(f"error: workers: give the number of processes and the command, as in\n{usage}", file=sys.stderr)
        sys.exit(2)
    environs = environments(free_ports(int(count)), os.environ, visible_gpus(os.environ))
    sys.exit(run_together([sys.executable, *words], environs))


if __name__ == "__main__":
    main()
