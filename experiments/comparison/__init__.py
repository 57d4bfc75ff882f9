"""Comparing finished runs, parity records and evaluations: the checks, and the report that holds them.

    runs     a finished run, read from its directory
    result   a comparison while it is built
    losses   training and validation losses
    verdict  the words about it: title, rungs, verdict
    build    the report of a comparison

It loads no framework. It may import everything but the commands.
"""
