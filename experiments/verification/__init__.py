"""Verification of runs: what a run recorded is computed again, and compared.

    recorded.py       a run, or a certificate of one, as it was recorded; what contradicts itself without computing
    segments.py       the segments that can be computed again on their own, and the draw of some of them
    replay.py         one segment, computed again from its first state
    compare.py        equal bits, or within a bound that rounding sets: twins that start one unit in the last place away
    results.py        the final samples, drawn again, and their evaluation
    verdict.py        what was found, as text and as a file
    verify.py         all of it

May import: the configuration, training and what those may import.
"""
