"""`python3 -m duet`."""

import sys

if sys.version_info < (3, 7):  # noqa: UP036
    sys.exit("duet: Python %d.%d is too old; start Duet with Python 3.11, 3.12 or 3.13" % sys.version_info[:2])  # noqa: UP031

from duet.cli import main

if __name__ == "__main__":
    sys.exit(main())
