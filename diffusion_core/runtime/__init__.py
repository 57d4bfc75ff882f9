"""Processes and signals.

`distributed` has the processes that compute one run together, `process_pool` worker processes that end with their
parent, and `signals` the orderly end on SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C.

May import: common.
"""
