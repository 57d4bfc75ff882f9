"""The theory: how noise is added, what a network predicts, and how training weighs noise levels.

`schedule` and `continuous` have the noise schedules, `process` the parameterisations, `timestep_sampling` the
distributions of t in training, `loss_weighting` the loss weights and `variational` learned variances.

May import: common.
"""
