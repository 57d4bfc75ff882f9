"""Comparing finished runs, parity records and evaluations: the checks, and the report that holds them.

    runs     a finished run, read from its directory
    build    the report of a comparison

It loads no framework. It may import everything but the commands.
"""
