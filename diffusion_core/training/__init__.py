"""Training: `objective` turns images into batches, and `loop` runs the steps.

May import: model, data, backend, optim, runtime and below; not likelihood.
"""
