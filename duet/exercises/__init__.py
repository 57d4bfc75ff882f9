"""Exercises for students of diffusion models: statements, laws, usual mistakes, and a checker.

    duet.check()                           all exercises
    duet.exercise("ddim_step")             the statement of one
    duet.check("ddim_step", my_function)   right, or what is wrong

`definition` says what an exercise is and adds new ones; `checker` judges a function; `diagnose` names the mistakes, and
`frameworks` finds the arrays that the function takes. The other modules hold the exercises. The package imports the
core and no framework.
"""

import importlib

from duet.exercises.checker import Exercises, Result, WrongNumber, check, exercise
from duet.exercises.definition import EXERCISES, Exercise, Law, Mistake, Network, add, distance

# Each adds its exercises, in the order in which they are listed.
for _topic in (
    "schedules", "predictions", "ddpm", "ddim", "guidance", "solvers", "edm", "losses", "layers", "blocks", "updates",
):  # fmt: skip
    importlib.import_module(f"duet.exercises.{_topic}")

__all__ = [
    "EXERCISES",
    "Exercise",
    "Exercises",
    "Law",
    "Mistake",
    "Network",
    "Result",
    "WrongNumber",
    "add",
    "check",
    "distance",
    "exercise",
]
