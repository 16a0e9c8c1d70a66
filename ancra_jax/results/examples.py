"""What is kept of single examples: predictions, and a few adversarial images to look at."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from ancra_jax.errors import UsageError
from ancra_jax.ops.files import AnyPath, as_path, read_arrays
from ancra_jax.results.load import Evaluation
from ancra_jax.results.names import NATURAL, STRENGTH_ORDER, attack_order

_ONCE = ("step", "classes")
NEEDED = (*_ONCE, "indices", "labels", "broken_by", "natural", "adversarial", "logits")


def examples_path(directory: AnyPath, attack: str) -> AnyPath:
    """Return where an evaluation's directory has the adversarial images kept of an attack."""
    return directory / f"{attack}.examples.npz"


@dataclass(frozen=True)
class Example:
    """One example of the test split, and what an attack made of it."""

    index: int  # in the test split
    label: int
    attack: str  # whose result keeps it: the first attack that broke it, else the last attack
    broken_by: str  # that attack, or the one of a sequence that broke it; '' where it withstood
    natural: UInt8[np.ndarray, "height width channels"]
    adversarial: Float[np.ndarray, "height width channels"]  # as attacked, pixels in [0, 1]
    logits: Float[np.ndarray, "2 classes"]  # on the natural and on the adversarial image


@dataclass(frozen=True)
class Details:
    """What an evaluation tells of single examples; old and published ones tell nothing."""

    labels: Int[np.ndarray, "examples"]  # empty where they were not kept
    predictions: dict[str, Int[np.ndarray, "examples"]]  # by attack, where they were kept
    classes: tuple[str, ...]  # names; numbers where they were not kept
    examples: tuple[Example, ...]  # each once, in the order of the attacks
    kept: bool  # whether images were kept; of a network that errs everywhere there are none


NO_DETAILS = Details(np.zeros(0, np.int32), {}, (), (), kept=False)


def load_details(workdir: str, evaluation: Evaluation) -> Details:
    """Read what the results of an evaluation keep of single examples.

    Raises:
      UsageError: a file is damaged.
    """
    directory = as_path(workdir) / "evaluation" / evaluation.checkpoint
    labels = np.zeros(0, np.int32)
    predictions: dict[str, np.ndarray] = {}
    classes: tuple[str, ...] = ()
    examples: dict[int, Example] = {}
    for attack in sorted(evaluation.correct, key=lambda name: attack_order(name, STRENGTH_ORDER)):
        path = directory / f"{attack}.npz"
        arrays = read_arrays(path) if path.exists() else {}
        labels = max(labels, arrays.get("labels", labels), key=len)
        if "predictions" in arrays:
            predictions[attack] = arrays["predictions"]
        path = examples_path(directory, attack)
        if attack == NATURAL or not path.exists():
            continue
        kept = read_arrays(path, NEEDED)
        _check(path, kept, len(labels))
        if kept["step"] != evaluation.records[attack]["step"]:
            continue
        classes = tuple(map(str, kept["classes"]))
        for example in _examples(attack, kept):
            if not (example.index in examples and examples[example.index].broken_by):
                examples[example.index] = example
    withstood = np.ones(len(labels), bool)  # also what an attack did not see
    for correct in evaluation.correct.values():
        here = correct[: len(labels)]
        withstood[: len(here)] &= here
    chosen = [one for one in examples.values() if one.broken_by or withstood[one.index]]
    seen = [labels, *predictions.values()]
    count = max(int(one.max(initial=-1)) for one in seen) + 1
    names = classes or tuple(map(str, range(count)))
    return Details(labels, predictions, names, tuple(chosen), kept=bool(classes))


def _check(path: AnyPath, kept: dict[str, np.ndarray], count: int) -> None:
    """Refuse arrays of different examples or classes, or of examples that do not exist."""
    found = len(kept["indices"])
    alike = all(kept[name].shape[:1] == (found,) for name in NEEDED if name not in _ONCE)
    alike &= kept["natural"].shape == kept["adversarial"].shape and kept["natural"].ndim == 4
    if not alike or kept["logits"].shape[1:] != (2, len(kept["classes"])):
        raise UsageError(f"{path}: its arrays are not of the same examples and classes")
    if found and not 0 <= kept["indices"].min() <= kept["indices"].max() < count:
        raise UsageError(f"{path}: indices must be 0 to {count - 1}: {kept['indices'].tolist()}")


def _examples(attack: str, kept: dict[str, np.ndarray]) -> Iterator[Example]:
    for row, index in enumerate(kept["indices"]):
        yield Example(
            index=int(index),
            label=int(kept["labels"][row]),
            attack=attack,
            broken_by=str(kept["broken_by"][row]),
            natural=kept["natural"][row],
            adversarial=kept["adversarial"][row],
            logits=kept["logits"][row],
        )
