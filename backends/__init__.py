"""The frameworks that execute what the core decides. Importing this package loads none of them.

`backends.torch` and `backends.tf` are twins: the same files, the same names, in the same order.
"""
