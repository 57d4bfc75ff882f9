"""What every other package uses: errors, random streams, registries of named functions, and text.

`errors` has the one exception for mistakes of a user; `random` the counter-based streams; `registry` builds objects
from a name and options; `text` formats numbers.

May import: nothing else of Duet.
"""
