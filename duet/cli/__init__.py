"""The command `duet`: set up the environments, and run every other command in the environment that it needs.

`python3 -m duet COMMAND` and the installed script `duet COMMAND` do the same.

This package uses the standard library only, and no syntax that Python 3.7 cannot read: it works before any environment
exists, and an old Python gets one clear line. Its modules, each of which may import those before it:

    terminal.py       output, errors and durations
    backends.py       the backends, as configs/backend/*.yaml describe them
    builds.py         which builds and extras an environment gets
    environments.py   `setup`: one virtual environment per backend
    experiments.py    `train`, `sample` ...: commands that run in an environment; `run` and `launch`
    stages.py         tables of commands, two of which run at a time
    testing.py        `test`
    demo.py           `demo`
    completion.py     `completion`: tab completion for bash and zsh
    main.py           the list of commands, and the help
"""

from __future__ import annotations

from duet.cli.main import main

__all__ = ["main"]
