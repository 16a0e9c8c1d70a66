"""What AutoAttack finds: the result, and the state on disk from which it can continue."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ancra_jax.attacks.arguments import check_list
from ancra_jax.attacks.autoattack.ensemble import Attack, describe
from ancra_jax.attacks.job import CLEAN, ROBUST, HostImages, Job, Numbers
from ancra_jax.attacks.model import Model
from ancra_jax.attacks.saved_state import (
    check_same,
    digest,
    read_arrays,
    unreadable,
    write_arrays,
    write_atomically,
)
from ancra_jax.attacks.square import square
from ancra_jax.ops.files import AnyPath, UrlPath

NOT_ATTACKED, WITHSTOOD, BROKEN = range(3)
Flags = Bool[np.ndarray, "examples"]
_SQUARE_GAIN = 0.002  # in robust accuracy; a larger one makes gradients look masked
_PER_EXAMPLE = ("images", "robust", "broken_by", "target", "norms", "predictions")


class AttackRecord(NamedTuple):
    """What one attack of the list did.

    Attributes:
      name: of the attack.
      group: it belongs to.
      attacked: how many examples it was tried on.
      broken: how many of them it broke.
      accuracy_after: robust accuracy after it and all before it.
      own_accuracy: what it would leave if it were the only attack; None if it was not tried on
        every example that is classified correctly without an attack.
      denied: successes of the search that the fresh forward pass did not confirm; none of them
        counts.
    """

    name: str
    group: str
    attacked: int
    broken: int
    accuracy_after: float
    own_accuracy: float | None
    denied: int = 0


@dataclass(frozen=True, repr=False)
class AutoAttackResult:
    """The robust accuracy and, for every example, what broke it.

    Attributes:
      images: adversarial images where an attack succeeded, the natural images elsewhere.
      robust: whether the natural image is classified correctly and no attack broke the example.
      broken_by: name of the attack that broke the example, 'clean' if the natural image is
        misclassified already, '' if robust.
      target: the class which that attack aimed at; -1 if it was untargeted or there was none.
      norms: size of the perturbation in the threat model's norm; 0 where no attack succeeded.
      queries: forward passes spent on the example.
      predictions: the class predicted for ``images``; -1 where a state of version 0.1 does not say.
      accuracies: 'clean' (natural accuracy) and, in order, every attack: the accuracy after it.
      warnings: why the result may be too optimistic, or differ from what was asked for.
      records: what each attack did; those that ``max_seconds`` left out are missing.
      complete: whether all attacks ran to their end.
      seconds: what every attack took in this call; one that continued a state took less.
      search_precision: of products in the searches; successes and natural images are judged in
        ``matmul_precision``.
    """

    images: HostImages
    robust: Bool[np.ndarray, "examples"]
    broken_by: np.ndarray
    target: Int[np.ndarray, "examples"]
    norms: Float[np.ndarray, "examples"]
    queries: Int[np.ndarray, "examples"]
    predictions: Int[np.ndarray, "examples"]
    accuracies: dict[str, float]
    warnings: list[str]
    records: tuple[AttackRecord, ...] = ()
    complete: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    search_precision: str = "highest"

    @property
    def denied(self) -> int:
        """How many successes of searches the fresh forward passes did not confirm."""
        return sum(record.denied for record in self.records)

    @property
    def clean_accuracy(self) -> float:
        """The share of natural images that are classified correctly."""
        return self.accuracies[CLEAN]

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that are classified correctly whatever the attacks did."""
        return float(self.robust.mean())

    def __repr__(self) -> str:
        ended = "" if self.complete else ", stopped before its end"
        lines = [f"AutoAttackResult({len(self.robust)} examples{ended}"]
        lines += [f"  accuracy {left:7.2%}  {name}" for name, left in self.accuracies.items()]
        if self.denied:
            lines.append(f"  {self.denied} successes of searches ({self.search_precision}) denied")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + ")"


def worst_case(results: Sequence[AutoAttackResult]) -> AutoAttackResult:
    """Return the pointwise worst case of several evaluations of the same examples.

    Args:
      results: of one model on the same images in the same order, such as those of several keys.

    Returns:
      For every example the first result that broke it; ``accuracies`` has, after 'clean', what is
      left after each result: 'run 1', 'run 2' ... Queries and seconds add up, warnings are united,
      and ``records`` are those of all results one after the other. ``search_precision`` names all
      that there were.

    Raises:
      ValueError: no results, or results over different examples.
    """
    check_list(results, "results", AutoAttackResult, "AutoAttackResult")
    if not results:
        raise ValueError("results is empty")
    first = results[0]
    wrong = first.broken_by == CLEAN
    merged: dict[str, Any] = {}
    for name in _PER_EXAMPLE:
        every = [getattr(result, name) for result in results]
        merged[name] = np.array(every[0], np.result_type(*every))  # as wide as the longest name
    accuracies = {CLEAN: first.clean_accuracy}
    seconds: dict[str, float] = {}
    for number, result in enumerate(results, start=1):
        same_shape = result.images.shape == first.images.shape
        if not same_shape or not np.array_equal(result.broken_by == CLEAN, wrong):
            raise ValueError("results are of different examples or models")
        newly = merged["robust"] & ~result.robust
        for name in _PER_EXAMPLE:
            merged[name][newly] = getattr(result, name)[newly]
        for name, spent in result.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        accuracies[f"run {number}"] = float(merged["robust"].mean())
    return AutoAttackResult(
        queries=np.sum([result.queries for result in results], axis=0),
        accuracies=accuracies,
        warnings=list(dict.fromkeys(line for result in results for line in result.warnings)),
        records=tuple(record for result in results for record in result.records),
        complete=all(result.complete for result in results),
        seconds=seconds,
        search_precision=", ".join(dict.fromkeys(result.search_precision for result in results)),
        **merged,
    )


@dataclass
class State:
    """Per-example findings and the position in the list of attacks."""

    fingerprint: str  # digest of the images, labels and settings
    probe: np.ndarray  # logits of the first natural images, which stand for the model's weights
    attack: int  # number of the current one: -1 for natural images, the list's length at the end
    round: int  # number of its current pass
    todo: Flags  # examples which this pass has still to attack
    pass_size: int  # how many they were when the pass began; ``tackled`` on disk
    robust: Flags  # examples which no attack has broken
    broken_by: np.ndarray  # name of the attack that broke an example, 'clean' or ''
    target: Numbers  # the class it aimed at, else -1
    norms: Float[np.ndarray, "examples"]  # size of the adversarial perturbation, else 0
    queries: Numbers  # forward passes spent
    targets: Int[np.ndarray, "examples targets"]  # classes by natural rank, without the label
    accuracies: Float[np.ndarray, "entries"]  # natural, then after every finished attack
    zero_gradient: Flags  # whether the input gradient was exactly 0
    not_finite: Flags  # whether logits near the natural image were NaN or infinite
    outcomes: Int[np.ndarray, "attacks examples"]  # NOT_ATTACKED, WITHSTOOD or BROKEN
    exhaustive: Bool[np.ndarray, "attacks"]  # whether it gets what others broke, too
    # States of version 0.1 lack what follows.
    predictions: Numbers  # of the natural image, or of the adversarial one
    # Times of this call. Not saved, so that a resumed state equals an uninterrupted one.
    seconds: Float[np.ndarray, "attacks"]
    zero_dlr_gradient: Flags  # as ``zero_gradient``, of the loss of the first attack along DLR
    denied: Int[np.ndarray, "attacks"]  # successes that a fresh forward pass did not confirm

    @classmethod
    def new(cls, job: Job, attacks: Sequence[Attack], num_targets: int) -> "State":
        """Return the state before anything is known; so many classes are ranked at least."""
        examples = len(job.images)
        num_targets = max([num_targets, *(attack.most_targets or 0 for attack in attacks)])
        num_targets = min(num_targets, job.num_classes - 1)
        longest = max(len(name) for name in [CLEAN, *(attack.name for attack in attacks)])
        return cls(
            fingerprint="",  # only a state that is saved needs one
            probe=job.probe,
            attack=-1,
            round=0,
            todo=np.ones(examples, bool),
            pass_size=examples,
            robust=np.ones(examples, bool),
            broken_by=np.full(examples, ROBUST, dtype=f"U{longest}"),
            target=np.full(examples, -1, np.int32),
            norms=np.zeros(examples, np.float32),
            queries=np.zeros(examples, np.int64),
            targets=np.zeros((examples, num_targets), np.int32),
            accuracies=np.full(len(attacks) + 1, np.nan),
            zero_gradient=np.zeros(examples, bool),
            not_finite=np.zeros(examples, bool),
            outcomes=np.full((len(attacks), examples), NOT_ATTACKED, np.int8),
            exhaustive=np.array([attack.exhaustive for attack in attacks], bool),
            predictions=np.full(examples, -1, np.int32),
            seconds=np.zeros(len(attacks)),
            zero_dlr_gradient=np.zeros(examples, bool),
            denied=np.zeros(len(attacks), np.int64),
        )

    def standing(self, attack: int) -> Flags:
        """Return which examples an attack gets: the robust ones, or all correct without attacks."""
        return self.broken_by != CLEAN if self.exhaustive[attack] else self.robust

    def end_round(self) -> None:
        """Move on to the next pass, on what this attack has not broken."""
        self.round += 1
        self.todo = self.standing(self.attack) & (self.outcomes[self.attack] != BROKEN)
        self.pass_size = int(self.todo.sum())

    def end_attack(self) -> None:
        """Note the accuracy that is left and move on to the next attack, if there is one."""
        self.attack += 1
        self.accuracies[self.attack] = self.robust.mean()
        self.round = 0
        if self.attack < len(self.exhaustive):
            self.todo = self.standing(self.attack).copy()
        self.pass_size = int(self.todo.sum())

    def result(
        self,
        attacks: Sequence[Attack],
        images: HostImages,
        warnings: list[str],
        max_seconds: float | int | None,
        precision: str,
    ) -> AutoAttackResult:
        """Return what a finished evaluation found, or one that a limit stopped."""
        names = [attack.name for attack in attacks]
        finished = self.attack
        if finished < len(attacks):
            warnings.append(
                f"stopped after {max_seconds:g} s in {names[finished]} (attack {finished + 1} of "
                f"{len(attacks)}): the robust accuracy is what was left by then"
            )
        accuracies = self.accuracies[: finished + 1].tolist()
        return AutoAttackResult(
            images=images,
            robust=self.robust,
            broken_by=self.broken_by,
            target=self.target,
            norms=self.norms,
            queries=self.queries,
            predictions=self.predictions,
            accuracies=dict(zip([CLEAN, *names[:finished]], accuracies, strict=True)),
            warnings=warnings + _warnings(self, [attack.run is square for attack in attacks]),
            records=tuple(_record(self, number, attacks[number]) for number in range(finished)),
            complete=finished == len(attacks),
            seconds=dict(zip(names, self.seconds.tolist(), strict=True)),
            search_precision=precision,
        )


def fingerprints(
    job: Job, attacks: Sequence[Attack], num_targets: int, rank_by: Model | None
) -> Iterator[str]:
    """Yield the fingerprint of an evaluation, then what it was before runs were a part of it."""
    settings = {
        "attacks": [describe(attack) for attack in attacks],
        "num_targets": min(num_targets, job.num_classes - 1),
        "ranked_by_another": rank_by is not None,
    }
    runs = [digest(partial(attack.run, **attack.options)) for attack in attacks]
    yield job.fingerprint(**settings, runs=runs, rank_by=digest(rank_by))
    yield job.fingerprint(**settings)


def _record(state: State, number: int, attack: Attack) -> AttackRecord:
    outcomes = state.outcomes[number]
    withstood, broken = int((outcomes == WITHSTOOD).sum()), int((outcomes == BROKEN).sum())
    on_all = withstood + broken == int((state.broken_by != CLEAN).sum())
    return AttackRecord(
        name=attack.name,
        group=attack.group,
        attacked=withstood + broken,
        broken=broken,
        accuracy_after=float(state.accuracies[number + 1]),
        own_accuracy=withstood / len(outcomes) if on_all else None,
        denied=int(state.denied[number]),
    )


def log_line(state: State, attack: Attack) -> str:
    """Return a line on the attack that ended last."""
    record = _record(state, state.attack - 1, attack)
    return (
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {record.name}: robust accuracy "
        f"{record.accuracy_after:.2%}, {record.broken} of {record.attacked} broken, "
        f"{state.seconds[state.attack - 1]:.1f} s, {record.denied} denied"
    )


def _warnings(state: State, are_square: Sequence[bool]) -> list[str]:
    """Return warnings about what the attacks met; ``are_square`` says which of them are Square."""
    warnings = []
    examples = len(state.robust)
    if count := int(state.zero_gradient.sum()):
        warnings.append(
            f"zero input gradient on {count} of {examples} examples: gradient-based attacks are "
            "blind there (saturated logits, quantisation?)"
        )
    if count := int((state.zero_dlr_gradient & ~state.zero_gradient).sum()):
        warnings.append(
            f"zero gradient of the DLR loss, though not of the cross-entropy, on {count} of "
            f"{examples} examples: APGD along it is blind there"
        )
    if count := int(state.not_finite.sum()):
        warnings.append(
            f"NaN or infinite logits near {count} of {examples} images: such points do not count "
            "as adversarial"
        )
    left = state.accuracies
    others_before = np.cumsum(np.logical_not(are_square)) > 0
    finished = np.arange(len(are_square)) < state.attack
    gain = float((left[:-1] - left[1:])[are_square & others_before & finished].sum())
    if gain > _SQUARE_GAIN:
        warnings.append(
            f"Square, which uses no gradient, lowered the robust accuracy by "
            f"{100 * gain:.2f} points: the gradients may be masked"
        )
    return warnings


_STATE, _IMAGES = "state.npz", "images.npy"
# Names of the fields on disk.
_SAVED = {entry.name: entry.name for entry in fields(State)} | {"pass_size": "tackled"}
del _SAVED["seconds"]
_SINCE_02 = ("predictions", "zero_dlr_gradient", "denied")


class Store:
    """Keeps the state and the adversarial images, in a directory if there is one, else in memory.

    Images are written in place, row by row, before the state that speaks of them, which is replaced
    as a whole: an interruption at any moment leaves a state that is true. At an address (gs://...)
    nothing can be written in place, and the rows of every batch become an object of their own.
    """

    def __init__(self, directory: AnyPath | None, images: HostImages):
        """Begin with the natural images; a directory is not touched before ``resume``."""
        self._directory = directory
        self._in_place = directory is not None and not isinstance(directory, UrlPath)
        self._images = images if self._in_place else images.copy()
        self._parts = 0  # objects with rows of images

    def resume(self, fresh: State, fingerprints: Iterator[str]) -> State:
        """Return the saved state if there is one, else ``fresh``; refuse another evaluation's.

        The first of the fingerprints is that of the state; a saved one may have any of them.
        """
        if self._directory is None:
            return fresh
        fresh.fingerprint = next(fingerprints)
        path = self._directory / _IMAGES
        if not (self._directory / _STATE).exists():
            if self._in_place:
                natural = np.ascontiguousarray(self._images)
                write_atomically(path, lambda file: np.save(file, natural))
            return fresh
        needed = [saved for saved in _SAVED.values() if saved not in _SINCE_02]
        arrays = {name: getattr(fresh, name) for name in _SINCE_02}
        arrays |= read_arrays(self._directory / _STATE, needed)
        values: dict[str, Any] = {name: arrays[saved] for name, saved in _SAVED.items()}
        values["seconds"] = fresh.seconds
        state = State(**{k: v.item() if v.ndim == 0 else v for k, v in values.items()})
        allowed = itertools.chain([fresh.fingerprint], fingerprints)
        check_same(self._directory, state.fingerprint, state.probe, allowed, fresh.probe)
        state.fingerprint = fresh.fingerprint
        if not self._in_place:
            while (part := self._part()).exists():
                rows = read_arrays(part, ["examples", "images"])
                self._images[rows["examples"]] = rows["images"]
                self._parts += 1
            return state
        shape = _mapped(path, "r").shape
        if shape != self._images.shape:
            raise unreadable(path, f"shape {shape}")
        return state

    def write(self, examples: Numbers, images: HostImages) -> None:
        """Record adversarial images."""
        if not self._in_place:
            self._images[examples] = images
            if self._directory is not None:
                write_arrays(self._part(), {"examples": examples, "images": images})
                self._parts += 1
        else:
            assert self._directory is not None
            on_disk = _mapped(self._directory / _IMAGES, "r+")
            on_disk[examples] = images
            on_disk.flush()

    def save(self, state: State) -> None:
        """Replace the saved state atomically."""
        if self._directory is not None:
            arrays = {saved: getattr(state, name) for name, saved in _SAVED.items()}
            write_arrays(self._directory / _STATE, arrays)

    def images(self) -> HostImages:
        """Return the images. Those of a directory are read now: until then they take no memory."""
        if self._in_place:
            assert self._directory is not None
            return np.load(str(self._directory / _IMAGES))
        return self._images

    def _part(self) -> AnyPath:
        """Return where the next rows of images are written."""
        assert self._directory is not None
        return self._directory / f"images.{self._parts}.npz"


def _mapped(path: AnyPath, mode: Literal["r", "r+"]) -> np.memmap:
    """Map a file of images into memory, for as long as the result is held."""
    try:
        return np.load(str(path), mmap_mode=mode)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
