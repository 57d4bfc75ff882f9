"""A request to verify a run: how its parts are made again of what it recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.manifest import chain_problem
from diffusion_core.runs.run_directory import write_json
from experiments.config.build import final_evaluation, training_setup
from experiments.config.recorded import recorded_config
from experiments.verification.recorded import Finding, Part, RecordedRun
from experiments.verification.verdict import Verdict
from experiments.verification.verify import MakeSetup, Options, Rebuilt, open_record

__all__ = ["VerificationRequest", "rebuild", "verification"]


@dataclass(frozen=True)
class VerificationRequest:
    """What is verified, and where the verdict is written.

    Args:
        run: as it was recorded.
        make: makes a part of the run again.
        options: how much is verified.
        problems: of the certificate.
        out: the file of the verdict; None chooses a new one in the run directory.
    """

    run: RecordedRun
    make: MakeSetup
    options: Options
    problems: Sequence[Finding]
    out: Path | None

    def write(self, verdict: Verdict) -> Path:
        """Write the file of the verdict, and return its path."""
        path = self.out or self._new_file(verdict)
        write_json(path, verdict.to_dict())
        return path

    def _new_file(self, verdict: Verdict) -> Path:
        folder = (self.run.directory or Path(self.run.name).parent) / "verdicts"
        backend = verdict.environments.get("here", {}).get("backend", "record")
        stem = f"{backend}-{verdict.draw.seed if verdict.draw.seed is not None else 'all'}"
        names = (f"{stem}{'' if not k else f'-{k + 1}'}.json" for k in range(10**6))
        return next(folder / name for name in names if not (folder / name).exists())


def verification(cfg: DictConfig) -> VerificationRequest:
    """Return the request of a configuration of `experiments.verify`.

    Raises:
        DuetError: if there is no such run, or a value is out of range.
    """
    out = Path(cfg.out).expanduser() if cfg.out else None
    if out is not None and out.exists():
        raise DuetError(f"out: {out} exists; choose another out=FILE, or delete it")
    options = Options(cfg.segments, cfg.draw_seed, cfg.results, cfg.twins, cfg.margin)
    run, problems = open_record(cfg.run)
    for part in run.parts if chain_problem(run.entries) is None else ():  # a wrong key is refused at once
        recorded_config(part.content["config"], f"{run.name}, part {part.number + 1}", cfg)

    def make(part: Part) -> Rebuilt:
        where = f"{run.name}, part {part.number + 1}"
        return rebuild(part.content["config"], where, _as_recorded(cfg, run.last))

    return VerificationRequest(run, make, options, problems, out)


def rebuild(text: str, where: str, cfg: DictConfig) -> Rebuilt:
    """Return the part of a run with this configuration, made again.

    Args:
        text: the configuration as YAML text.
        where: it stands, for errors.
        cfg: of the command.
    """
    config = recorded_config(text, where, cfg)
    setup = training_setup(config)
    return Rebuilt(setup, final_evaluation(config, setup), bool(config.change_objective))


def _as_recorded(cfg: DictConfig, part: Part) -> DictConfig:
    """Return a configuration with the threads and the device of the run, where nothing else was typed."""
    cfg, environment = cfg.copy(), part.content["environment"]
    if cfg.backend.threads is None:
        OmegaConf.update(cfg, "backend.threads", environment["threads"])
    if cfg.backend.device == "auto" and str(environment["device"]).startswith("cpu"):
        OmegaConf.update(cfg, "backend.device", "cpu")
    return cfg
