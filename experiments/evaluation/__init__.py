"""Evaluation of saved samples and of checkpoints.

setup       what is requested, as a frozen dataclass
run         evaluates it and writes the result
context     the inputs that measurements share
samples     metrics of saved samples
likelihood  bits per dimension of a checkpoint
accuracy    the accuracy of a classifier at each noise level
loss        the validation loss of a checkpoint
table       numbers as text
"""
