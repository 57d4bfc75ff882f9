"""The parity ladder: what must agree, how closely, and how it is measured.

`ladder` holds the rungs and their tolerances, `cases` the networks and inputs that they are measured on,
`trace` measures one backend against the reference and records what can only be compared with the other
framework, and `compare` compares two such records. None of it loads a framework.

May import: every other package.
"""
