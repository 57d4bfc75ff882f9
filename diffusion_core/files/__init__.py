"""Reading and writing files safely.

`safe_read` reads files of unknown origin with bounds and without unpickling; `atomic` writes a file completely or not
at all; `lock` reserves a directory for one process.

May import: common.
"""
