"""What an evaluation has found so far, kept on disk so that it can continue."""

import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ancra_jax.attacks.saved_state import StateError, check_same_model
from ancra_jax.attacks.types import CLEAN, ROBUST

_ARRAYS = "state.npz"
_IMAGES = "images.npy"
NOT_ATTACKED, WITHSTOOD, BROKEN = range(3)


@dataclass
class State:
    """Per-example findings and the position in the list of attacks.

    Attributes:
      fingerprint: digest of the images, labels and settings.
      probe: clean logits of the first images, which stand for the model's weights.
      attack: number of the current attack, -1 while clean images are classified; equal to the
        number of attacks at the end.
      round: number of its current pass.
      todo: examples which this pass has still to attack.
      tackled: how many they were when the pass began.
      robust: examples which no attack has broken.
      broken_by: name of the attack that broke an example, 'clean' or ''.
      target: the class it aimed at, else -1.
      norms: size of the adversarial perturbation, else 0.
      queries: forward passes spent.
      targets: classes by clean rank, from the second on.
      accuracies: robust accuracy after every finished attack, after clean accuracy.
      zero_gradient: examples whose input gradient was exactly 0.
      not_finite: examples with NaN or infinite logits near the clean image.
      outcomes: per attack and example 0 (not attacked), 1 (withstood) or 2 (broken).
      exhaustive: per attack, whether it gets the examples that others broke, too.
    """

    fingerprint: str
    probe: np.ndarray
    attack: int
    round: int
    todo: np.ndarray
    tackled: int
    robust: np.ndarray
    broken_by: np.ndarray
    target: np.ndarray
    norms: np.ndarray
    queries: np.ndarray
    targets: np.ndarray
    accuracies: np.ndarray
    zero_gradient: np.ndarray
    not_finite: np.ndarray
    outcomes: np.ndarray
    exhaustive: np.ndarray

    def standing(self, attack: int) -> np.ndarray:
        """Examples that an attack gets: the robust ones, or all that are correct when clean."""
        return self.broken_by != CLEAN if self.exhaustive[attack] else self.robust

    def end_round(self) -> None:
        """Moves on to the next pass, on what this attack has not broken."""
        self.round += 1
        self.todo = self.standing(self.attack) & (self.outcomes[self.attack] != BROKEN)
        self.tackled = int(self.todo.sum())

    def end_attack(self) -> None:
        """Notes the accuracy that is left and moves on to the next attack, if there is one."""
        self.attack += 1
        self.accuracies[self.attack] = self.robust.mean()
        self.round = 0
        if self.attack < len(self.exhaustive):
            self.todo = self.standing(self.attack).copy()
        self.tackled = int(self.todo.sum())


def new_state(
    digest: str,
    probe: np.ndarray,
    examples: int,
    num_targets: int,
    names: list[str],
    exhaustive: list[bool],
):
    """The state before anything is known; ``names`` and ``exhaustive`` are the attacks'."""
    return State(
        fingerprint=digest,
        probe=probe,
        attack=-1,
        round=0,
        todo=np.ones(examples, bool),
        tackled=examples,
        robust=np.ones(examples, bool),
        broken_by=np.full(examples, ROBUST, dtype=f"U{max(map(len, [CLEAN, *names]))}"),
        target=np.full(examples, -1, np.int32),
        norms=np.zeros(examples, np.float32),
        queries=np.zeros(examples, np.int64),
        targets=np.zeros((examples, num_targets), np.int32),
        accuracies=np.full(len(names) + 1, np.nan),
        zero_gradient=np.zeros(examples, bool),
        not_finite=np.zeros(examples, bool),
        outcomes=np.full((len(names), examples), NOT_ATTACKED, np.int8),
        exhaustive=np.asarray(exhaustive, bool),
    )


class Store:
    """Keeps the state, and the adversarial images: on disk if there is a directory, else in memory.

    Images are written in place, row by row, before the state that speaks of them, which is replaced
    as a whole: an interruption at any moment leaves a state that is true.
    """

    def __init__(self, directory: Path | None, images: np.ndarray):
        self.directory = directory
        self.natural = images
        self._images = images.copy() if directory is None else None
        self._offset = 0

    def resume(self, fresh: State) -> State:
        """The saved state if there is one, else ``fresh``.

        Raises:
          StateError: the saved state is of another evaluation, or unreadable.
        """
        if self.directory is None:
            return fresh
        saved = self._load()
        if saved is not None:
            self._check_same(saved, fresh)
            self._offset = self._check_images()
            return saved
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = self.directory / (_IMAGES + ".tmp")
            with temporary.open("wb") as file:
                np.save(file, np.ascontiguousarray(self.natural))
            os.replace(temporary, self.directory / _IMAGES)
        except OSError as error:
            raise StateError(f"state_path={self.directory}: cannot be written: {error}") from error
        self._offset = self._check_images()
        return fresh

    def write(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Records adversarial images."""
        if self._images is not None:
            self._images[rows] = images
            return
        with self._path(_IMAGES).open("r+b") as file:
            for row, image in zip(rows.tolist(), images, strict=True):
                pixels = image.astype(self.natural.dtype).tobytes()
                file.seek(self._offset + row * len(pixels))
                file.write(pixels)
            file.flush()
            os.fsync(file.fileno())

    def save(self, state: State) -> None:
        """Replaces the saved state atomically."""
        if self.directory is None:
            return
        temporary = self.directory / (_ARRAYS + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **{f.name: getattr(state, f.name) for f in fields(state)})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.directory / _ARRAYS)

    def in_memory(self) -> np.ndarray:
        """The images. Those of a directory are read now: until then they take no memory."""
        return np.load(self._path(_IMAGES)) if self._images is None else self._images

    def _path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / name

    def _load(self) -> State | None:
        path = self._path(_ARRAYS)
        if not path.exists():
            return None
        try:
            with np.load(path) as arrays:
                values = {f.name: arrays[f.name] for f in fields(State)}
        except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _unreadable(self.directory, _ARRAYS, error) from error
        return State(**{k: v.item() if v.ndim == 0 else v for k, v in values.items()})

    def _check_images(self) -> int:
        """Looks at the file of images; returns where in it the first pixel is."""
        try:
            images = np.load(self._path(_IMAGES), mmap_mode="r")
        except (OSError, ValueError) as error:
            raise _unreadable(self.directory, _IMAGES, error) from error
        if images.shape != self.natural.shape:
            raise _unreadable(self.directory, _IMAGES, f"shape {images.shape}")
        return images.offset

    def _check_same(self, saved: State, fresh: State) -> None:
        if saved.fingerprint != fresh.fingerprint:
            raise StateError(
                f"state_path={self.directory} holds an evaluation of other images, labels or "
                "settings; choose another directory, or delete it to start again"
            )
        check_same_model(self.directory, saved.probe, fresh.probe)


def _unreadable(directory, name, reason):
    return StateError(
        f"state_path={directory}: {name} is not a readable state ({reason}); "
        "delete the directory to start again"
    )
