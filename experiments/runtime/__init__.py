"""What a running command needs whatever it computes: progress, several processes, and how they end together.

It imports the core only.
"""
