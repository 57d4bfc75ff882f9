"""Parity records: what one backend computes, for the other to be compared with.

It takes plain values and knows no configuration.
"""
