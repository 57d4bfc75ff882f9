"""Images of samples and their sizes: grids, strips, PNG and GIF files (`render`), and resampling (`resize`).

May import: files, common.
"""
