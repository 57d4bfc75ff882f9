"""The command that resumes an interrupted run, and the record of how it was started."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_core.runtime.distributed import ProcessGroup
from experiments.config.convert import plain, to_yaml
from experiments.config.from_run import command_name
from experiments.config.schema import OWN_MODEL
from experiments.training.run import RunRecord
from hydra_plugins.duet_launcher.launcher import inherited_overrides, run_dir_override, source_flags

__all__ = ["output_directory", "resume_command", "run_record"]


def output_directory() -> Path:
    """Return the directory that Hydra made for the running command, `hydra.run.dir`."""
    return Path(HydraConfig.get().runtime.output_dir)


def run_record(cfg: DictConfig, directory: Path, group: ProcessGroup) -> RunRecord:
    """Return what a run directory keeps of its command.

    That includes the `.hydra` folder that users of Hydra expect; Hydra itself would overwrite that of an earlier run.
    """
    hydra = HydraConfig.get()
    parts = (("hydra", hydra), ("overrides", hydra.overrides.task))
    files = {f".hydra/{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts}
    return RunRecord(
        to_yaml(cfg), plain(cfg), files, lambda has_begun: resume_command(hydra, directory, group, has_begun)
    )


def resume_command(hydra: HydraConf, directory: Path, group: ProcessGroup, has_begun: bool) -> str:
    """Return the command that resumes the run in `directory`; a job of a sweep gets a command of its own.

    Args:
        hydra: the part `hydra` of the configuration.
        directory: of the run.
        group: the processes that compute together.
        has_begun: whether the run has written anything; otherwise it is started again as it was.
    """
    # Not the words that stand for an own network, which nobody types.
    task = [override for override in hydra.overrides.task if override != f"model={OWN_MODEL}"]
    if has_begun:
        task = [*(override for override in task if not override.startswith("resume=")), "resume=latest"]
    task = [_as_typed(override, directory if has_begun else None) for override in task]
    sources = [source for source in hydra.runtime.config_sources if source["provider"] == "command-line"]
    name = command_name(hydra.job.config_name)
    flags = [*source_flags(None if name == "train" else name, sources), *inherited_overrides(hydra.overrides.hydra)]
    place = f"hydra.run.dir={directory}" if _is_simple(directory) else run_dir_override(directory)
    return shlex.join([*group.launch_command, "train", *flags, *task, place])


def _as_typed(override: str, directory: Path | None) -> str:
    """Return `from_run=RUN` as `from=RUN`; a run that has begun has the whole configuration in its own directory."""
    if not override.startswith("from_run="):
        return override
    return f"from={directory}" if directory is not None and _is_simple(directory) else override.replace("_run", "", 1)


def _is_simple(directory: Path) -> bool:
    return re.fullmatch(r"[\w./-]+", str(directory)) is not None
