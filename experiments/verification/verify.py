"""Verification of a run: the record, then drawn segments computed again, then the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.networks.weights import hash_weights
from diffusion_core.runs.certificate import CERTIFICATE, claims, read_certificate
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, stored_hashes
from diffusion_core.runs.manifest import head
from diffusion_core.runs.run_directory import plain_data, read_metrics
from experiments.training.evaluation import FinalEvaluation, SkippedEvaluation
from experiments.training.manifest import setup_facts
from experiments.training.resume import first_state
from experiments.training.setup import TrainingSetup
from experiments.verification.compare import (
    MARGIN,
    Arrays,
    Bounds,
    Difference,
    bit_differences,
    record_differences,
)
from experiments.verification.environment import environment_differences, environment_here
from experiments.verification.facts import differing, short
from experiments.verification.recorded import Finding, Part, RecordedRun, read_run
from experiments.verification.replay import UNITS, Opened, Replayed, Twin, replay, stored_arrays
from experiments.verification.results import evaluation_differences, sample_differences, stated_differences
from experiments.verification.segments import Draw, Segment, draw_segments, find_segments
from experiments.verification.verdict import BIT_EXACT, DIFFERS, NOT_REPLAYED, WITHIN, SegmentResult, Verdict, worst_of

__all__ = ["MakeSetup", "Options", "Rebuilt", "open_record", "verify"]


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A part of a run, made again of what it recorded.

    Args:
        setup: what was trained.
        evaluation: of the final samples.
        change_objective: whether the part could change its objective.
    """

    setup: TrainingSetup
    evaluation: FinalEvaluation | SkippedEvaluation | None = None
    change_objective: bool = False


# Makes a part of a run again.
MakeSetup = Callable[[Part], Rebuilt]


@dataclass(frozen=True)
class Options:
    """How much is verified.

    Args:
        segments: how many are computed again, or ``"all"``.
        draw_seed: of their draw; None is a fresh one.
        results: whether the final samples are drawn and evaluated again.
        twins: how many twins measure the bound where bits cannot be equal.
        margin: of the bound over the twins.

    Raises:
        DuetError: for a number out of range.
    """

    segments: int | str = 3
    draw_seed: int | None = None
    results: bool = True
    twins: int = 3
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if self.twins < 1:
            raise DuetError(f"twins: {self.twins} was given; it must be at least 1")
        if not 1 <= self.margin < float("inf"):
            raise DuetError(f"margin: {self.margin} was given; it must be a number of at least 1")


_RESULTS = "the final samples and their evaluation"
_ADVICE = " (if it lies elsewhere: data.options.path=PATH or data.store=DIR for the data, teacher=RUN for the teacher)"


@dataclass(eq=False)
class _Verification:
    """One verification, with what it has opened."""

    run: RecordedRun
    make: MakeSetup
    options: Options
    rebuilt: dict[int, Rebuilt] = field(default_factory=dict)
    backends: dict[tuple[Any, ...], Backend] = field(default_factory=dict)
    reasons: dict[int, list[str]] = field(default_factory=dict)

    def part(self, number: int) -> Rebuilt:
        """Return a part of the run, made again."""
        if number not in self.rebuilt:
            self.rebuilt[number] = self.make(self.run.parts[number])
        return self.rebuilt[number]

    def opened(self, number: int) -> Opened:
        """Return a part of the run with its backend, in the mode that it recorded."""
        part, rebuilt = self.run.parts[number], self.part(number)
        backend, by = rebuilt.setup.backend, part.content["computed_by"]
        compiled = by["compile"] if by["backend"] == backend.name else False
        key = (backend.name, backend.config, compiled)
        if key not in self.backends:
            self.backends[key] = backend.open(0, compiled)
        return Opened(part, rebuilt.setup, self.backends[key], rebuilt.change_objective)

    def reasons_of(self, number: int) -> list[str]:
        """Return why a part of the run need not have equal bits here; see `environment_differences`."""
        if number not in self.reasons:
            opened = self.opened(number)
            self.reasons[number] = environment_differences(opened.part, opened.setup, opened.backend)
        return self.reasons[number]

    def parts_of(self, segment: Segment) -> list[int]:
        """Return the numbers of the parts that a segment leads through."""
        return [leg.part for leg in segment.legs]


def open_record(path: str | Path) -> tuple[RecordedRun, list[Finding]]:
    """Return a run or a certificate as it was recorded, and what contradicts itself in the certificate.

    Raises:
        DuetError: if it is neither.
    """
    given = Path(path).expanduser()
    if given.is_file():
        _, entries, problems = read_certificate(given)
        return read_run(given, entries), [Finding(given.name, problem) for problem in problems]
    run = read_run(given)
    file = given / CERTIFICATE
    return run, list(_certificate_problems(run, file)) if file.is_file() else []


def _certificate_problems(run: RecordedRun, file: Path) -> Iterator[Finding]:
    """Yield how a certificate differs from the run that it is of; a run may have gone on since."""
    _, entries, problems = read_certificate(file)
    for problem in problems:
        yield Finding(file.name, problem)
    theirs, own = [one.sha256 for one in entries], [one.sha256 for one in run.entries]
    if theirs != own[: len(theirs)]:
        yield Finding(file.name, "it is a certificate of another run, or the manifest was changed since")


def verify(
    run: RecordedRun, make: MakeSetup, options: Options | None = None, problems: Sequence[Finding] = ()
) -> Verdict:
    """Verify a run.

    Args:
        run: as it was recorded.
        make: makes a part of the run again, for the backend that verifies it.
        options: how much is verified.
        problems: that are known already.

    Raises:
        DuetError: if a part cannot be made again, for example because a key of its configuration does not exist.
    """
    began, options = perf_counter(), options or Options()
    work = _Verification(run, make, options)
    problems = [*problems, *run.problems()]
    unchecked = [] if any(problem.what == "manifest" for problem in problems) else list(run.uncovered())
    draw, results, environments = Draw((), ()), [], {}
    if not problems:
        draw = draw_segments(find_segments(run), options.segments, options.draw_seed)
        environments["recorded"] = _recorded_environment(run)
        try:
            problems += _setup_problems(work, draw)
            wrong, unknown = ([], []) if problems else _first_weights(work, draw.drawn)
            problems, unchecked = problems + wrong, unchecked + unknown
        except DuetError as error:  # data, a teacher or a package is not here
            unchecked.append(Finding("every segment", f"the run cannot be made again here: {error}{_ADVICE}"))
            draw = replace(draw, drawn=())
    if not problems and draw.drawn:
        results = [_verify_segment(work, segment) for segment in draw.drawn]
        environments["here"] = environment_here(work.opened(run.last.number).backend)
        if not options.results:
            unchecked.append(Finding(_RESULTS, "results=false was given"))
        elif run.directory is not None and run.end is not None:
            if run.moments()[-1].checkpoint is None:
                unchecked.append(Finding(_RESULTS, "the final checkpoint is not here"))
            else:
                results += _verify_results(work)
                if _recorded_numbers(run) and not isinstance(work.part(run.last.number).evaluation, FinalEvaluation):
                    unchecked.append(Finding("the evaluation of the final samples", "it cannot be computed here"))
    if not problems:
        unchecked += _unreplayed(run, draw)
    return Verdict(
        run=run.name, head=head(run.entries) if run.entries else "", claims=_claims(run, problems),
        problems=tuple(problems), draw=draw,
        results=tuple(results), unchecked=tuple(unchecked), environments=environments,
        seconds=perf_counter() - began,
    )  # fmt: skip


def _claims(run: RecordedRun, problems: Sequence[Finding]) -> Mapping[str, Any]:
    return {} if any(problem.what == "manifest" for problem in problems) else claims(run.entries)


def _recorded_environment(run: RecordedRun) -> dict[str, Any]:
    content = run.last.content
    environment = {k: v for k, v in content["environment"].items() if k not in ("command", "resumed_from", "labels")}
    return environment | {"flags": content["flags"], "packages": content["packages"]}


def _setup_problems(work: _Verification, draw: Draw) -> Iterator[Finding]:
    """Yield how what a part recorded of its data, network and options differs from what its configuration makes."""
    needed = {number for segment in draw.drawn for number in work.parts_of(segment)} | {work.run.last.number}
    for number in sorted(needed):
        part, setup = work.run.parts[number], work.part(number).setup
        skipped = set(_HOW) if part.is_fresh else _HOW | {"training.init"}
        if part.setup["own_network"] and part.content["computed_by"]["backend"] != setup.backend.name:
            skipped |= {"own_network", "program_sha256"}  # they belong to one framework
        for place, recorded, found in differing(part.setup, plain_data(setup_facts(setup)), "", skipped):
            detail = f"{short(recorded)} was recorded; its configuration and what is found here make {short(found)}"
            yield Finding(f"part {number + 1}, {place}", detail)


# How a run computes and what it draws at its end, or where its data lie: not what its training computes.
_HOW = {"training.data.options", "training.sampler", "training.sample", "own_network.reference"}


def _first_weights(work: _Verification, drawn: Sequence[Segment]) -> tuple[list[Finding], list[Finding]]:
    """Return whether a run begins with other weights than its configuration draws, as problems and as unchecked.

    NumPy draws them, and its functions may differ in the last place on another processor or in another version.
    """
    part = work.run.parts[0]
    setup = work.part(0).setup
    other_backend = part.content["computed_by"]["backend"] != setup.backend.name
    if not part.is_fresh or (part.setup["own_network"] and other_backend):
        return [], []
    if hash_weights(first_state(setup).state.weights) == part.content["state"]["weights_sha256"]:
        return [], []
    recorded, here = part.content["environment"], environment_here(work.opened(0).backend)
    same = [recorded["processor"] == here["processor"], recorded["versions"].get("numpy") == here["versions"]["numpy"]]
    if all(same):
        return [Finding("first weights", "they are not those that the configuration draws with its seed")], []
    if any(segment.begin.is_fresh for segment in drawn):  # its bound covers them
        return [], []
    return [], [Finding("first weights", "NumPy draws other last bits here; segment 1 would hold them against a bound")]


def _unreplayed(run: RecordedRun, draw: Draw) -> Iterator[Finding]:
    lost = [segment for segment in draw.segments if not segment.can_be_replayed]
    for segment in lost:
        yield Finding(segment.name, "its first state is not here, so it cannot be computed again")
    across = [segment for segment in draw.drawn if sum(len(leg.moments) for leg in segment.legs) > 1]
    deleted = sum(len(leg.moments) for segment in across for leg in segment.legs) - len(across)
    if deleted > 0 and run.directory is not None:
        yield Finding(
            pluralize(deleted, "deleted checkpoint"),
            "their arrays were compared by hash alone; a segment leads across them",
        )


def _verify_segment(work: _Verification, segment: Segment) -> SegmentResult:
    """Compute a segment again and compare it; with twins where bits differ and need not be equal."""
    began, run, options = perf_counter(), work.run, work.options
    found, computed = replay(segment, work.opened)
    reasons = _reasons(work, segment, found)
    differences = list(_exact(run, segment, found, computed))
    notes = [one for one in differences if one.what.startswith(_NOTES)]
    compared = _compared(segment, found, run)
    bound = None
    if notes and reasons:  # these are no rounding
        differences = notes
    elif differences and reasons:
        if run.directory is None or not segment.end.checkpoint:
            detail = "its states are known by their hash only, which needs equal bits; give the run directory"
            return SegmentResult(
                segment.name, NOT_REPLAYED, reasons, first=Difference("states", None, 0.0, detail), count=1,
                seconds=perf_counter() - began,
            )  # fmt: skip
        precision = work.part(segment.legs[-1].part).setup.backend.precision
        twins = [replay(segment, work.opened, Twin(k, precision))[0] for k in range(options.twins)]
        both = [(_states(segment, one), one.records) for one in (found, *twins)]
        bounds = Bounds.from_twins(both[0], both[1:], options.margin, UNITS[precision])
        differences = list(_bounded(run, segment, found, bounds))
        bound = {"twins": bounds.twins, "margin": bounds.margin, "least": bounds.least}
    wrong = [one for one in differences if not one.is_within]
    verdict = DIFFERS if wrong else WITHIN if differences else BIT_EXACT
    return SegmentResult(
        segment.name, verdict, reasons if differences else (), worst_of([d for d in differences if d.is_within]),
        wrong[0] if wrong else None, len(wrong), compared, bound, perf_counter() - began, segment.number,
    )  # fmt: skip


# Begins what is compared of a checkpoint beside its arrays.
_NOTES = "state.json"


def _reasons(work: _Verification, segment: Segment, found: Replayed) -> tuple[str, ...]:
    """Return why a segment need not have equal bits."""
    reasons: dict[str, None] = {}
    for number in work.parts_of(segment):
        reasons |= dict.fromkeys(work.reasons_of(number))
    if segment.end.checkpoint is not None:
        halved = load_checkpoint(segment.end.checkpoint, require_finite=False).notes.get("halved")
        if halved != found.micro_batch:
            reasons[f"memory: it halved the micro-batch to {halved} images; {found.micro_batch} in the replay"] = None
    return tuple(reasons)


def _compared(segment: Segment, found: Replayed, run: RecordedRun) -> str:
    arrays = sum(map(len, found.arrays(segment.end.images_seen).values()))
    steps = pluralize(len(found.records), "step") + (" of metrics" if run.directory else "")
    return f"{pluralize(arrays, 'array')}, {steps}"


def _exact(run: RecordedRun, segment: Segment, found: Replayed, computed: Mapping[int, Opened]) -> Iterator[Difference]:
    """Yield what differs in any bit: metrics, then each state, in order."""
    yield from _metrics(run, segment, found, None)
    for leg in segment.legs:
        for moment in leg.moments:
            arrays = found.arrays(moment.images_seen)
            if moment.checkpoint is not None:
                checkpoint = load_checkpoint(moment.checkpoint, require_finite=False)
                yield from bit_differences(arrays, stored_arrays(checkpoint), moment.images_seen)
                yield from _note_differences(found, moment.images_seen, checkpoint, computed[moment.images_seen])
            else:
                hashes = stored_hashes(arrays)
                for file in sorted(hashes.keys() | moment.state["files"].keys()):
                    if hashes.get(file) != moment.state["files"].get(file):
                        yield Difference(
                            f"{file} at {moment.images_seen:,} images", None, 0.0, "its hash is not that of the replay"
                        )


def _metrics(run: RecordedRun, segment: Segment, found: Replayed, bounds: Bounds | None) -> Iterator[Difference]:
    if run.directory is None:
        return
    first, last = segment.begin.images_seen, segment.end.images_seen
    recorded = [line for line in read_metrics(run.directory / "metrics.jsonl") if first < line["images_seen"] <= last]
    yield from record_differences(found.records, recorded, bounds)


def _note_differences(found: Replayed, images_seen: int, stored: Checkpoint, opened: Opened) -> Iterator[Difference]:
    """Yield what a checkpoint says beside its arrays that the replay does not say."""
    notes = ("averages", "trained_for", "sampler", "weights", "skipped")
    mine = found.checkpoints[images_seen]
    recorded, made = (
        plain_data({
            "seed": one.seed, "updates": one.state.updates, "program": one.model.program.sha256,
            "notes": {name: one.notes.get(name) for name in notes},
            "training": one.training.to_dict() if one.training else {},
        })
        for one in (stored, mine)
    )  # fmt: skip
    skipped = {"training.data.options"}
    # Where the part began elsewhere, what the weights were trained with before is not known here.
    skipped |= set() if opened.part.is_fresh else {f"training.{name}" for name in _OF_EARLIER}
    skipped |= {"program"} if opened.part.setup["own_network"] else set()
    for place, one, other in differing(recorded, made, "", skipped):
        what = f"{_NOTES}, {place} at {images_seen:,} images"
        yield Difference(what, None, 0.0, f"{short(one)} recorded, {short(other)} replayed")


_OF_EARLIER = ("dropped_labels", "earlier_data", "init")


def _states(segment: Segment, found: Replayed) -> dict[int, Arrays]:
    """Return the arrays of each moment whose checkpoint is there to be compared."""
    moments = [moment.images_seen for leg in segment.legs for moment in leg.moments if moment.checkpoint is not None]
    return {moment: found.arrays(moment) for moment in moments}


def _bounded(run: RecordedRun, segment: Segment, found: Replayed, bounds: Bounds) -> Iterator[Difference]:
    """Yield what differs, with its bound."""
    yield from _metrics(run, segment, found, bounds)
    for leg in segment.legs:
        for moment in leg.moments:
            if moment.checkpoint is not None:
                stored = stored_arrays(load_checkpoint(moment.checkpoint, require_finite=False))
                yield from bit_differences(found.arrays(moment.images_seen), stored, moment.images_seen, bounds)


def _recorded_numbers(run: RecordedRun) -> Any:
    """Return the numbers of the evaluation at the end of a run; None without one."""
    return (run.end.content["result"].get("evaluation") or {}).get("numbers")


def _verify_results(work: _Verification) -> Iterator[SegmentResult]:
    """Yield the result of the final samples and of their evaluation."""
    run, options = work.run, work.options
    began, opened = perf_counter(), work.opened(run.last.number)
    reasons = tuple(work.reasons_of(run.last.number))
    differences = list(stated_differences(run, opened))
    compared = "mean loss"
    if opened.setup.plan is not None and "samples/samples.npz" in run.end.content["files"]:
        differences += sample_differences(run, opened, options.twins, options.margin, not reasons)
        compared += ", final samples"
    evaluation = work.part(run.last.number).evaluation
    if isinstance(evaluation, FinalEvaluation) and _recorded_numbers(run):
        differences += evaluation_differences(run, evaluation)
        compared += ", evaluation"
    wrong = [one for one in differences if not one.is_within]
    yield SegmentResult(
        "results", DIFFERS if wrong else WITHIN if differences else BIT_EXACT, reasons if differences else (),
        worst_of([d for d in differences if d.is_within]), wrong[0] if wrong else None, len(wrong), compared,
        seconds=perf_counter() - began,
    )  # fmt: skip
