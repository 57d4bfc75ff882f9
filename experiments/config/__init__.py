"""The border of the configuration: the only package (with hydra_plugins) that imports Hydra and OmegaConf.

    entry      makes a function into a command: composes its configuration, prints errors as one line
    arguments  the arguments before Hydra reads them: flags first, texts and paths as they are
    from_run   starts a command from the configuration of an earlier run
    composed   refuses what Hydra accepts and nobody reads: unknown choices, keys and folders
    output_dirs  directories that are named by the time, one for each run
    help       every group and key of a command in a line
    schema     the keys and types of every command's configuration
    suggest    the nearest known key for a misspelled one, and hints for renamed keys
    synonyms   what other libraries call the keys
    convert    a composed configuration as plain Python data
    build      plain configuration values as the frozen dataclasses that the applications take
    safe_yaml  bounded reading of YAML files that somebody else may have written

Commands (`experiments/*.py`) import this package; it imports applications (`experiments/training` ...), never commands.
"""
