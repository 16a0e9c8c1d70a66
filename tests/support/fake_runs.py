"""Work directories of runs that never ran, for tests of what reads them."""

import itertools
import json
import pathlib

import numpy as np

from ancra_jax.ops.files import write_arrays
from ancra_jax.results.store import SCHEMA
from ancra_jax.run import workdir as workdir_lib
from tests.support.small_runs import small_config

EXAMPLES = 10
CLASSES = ("cat", "<i>dog</i>", "owl")
NATURAL = (1, 1, 1, 1, 1, 1, 1, 1, 1, 0)
PGD = (1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
FGSM = (1, 1, 1, 1, 0, 1, 1, 1, 0, 0)
PAPER = {"natural": NATURAL, "fgsm": FGSM, "pgd40": PGD}  # worst case: the first 4


def write_result(workdir, attack, correct, checkpoint="best", **overrides):
    correct = np.array(correct, bool)
    record = {
        "schema": SCHEMA,
        "attack": attack,
        "method": "trades",
        "data": "digits",
        "data_fingerprint": "0123456789abcdef",
        "checkpoint": checkpoint,
        "step": 20,
        "num_examples": len(correct),
        "seed": 7,
        "settings": {"norm": "linf", "epsilon": 0.1},
        "num_correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "versions": {"jax": "0.10.0"},
        "device": "1 x cpu",
        "commit": "abc-dirty",
    } | overrides
    directory = pathlib.Path(workdir) / "evaluation" / checkpoint
    directory.mkdir(parents=True, exist_ok=True)
    labels = np.arange(len(correct)) % len(CLASSES)
    predictions = np.where(correct, labels, (labels + 1) % len(CLASSES))
    arrays = {"correct": correct, "labels": labels, "predictions": predictions}
    write_arrays(directory / f"{attack}.npz", arrays)
    (directory / f"{attack}.json").write_text(json.dumps(record))


def make_run(path, results=None, curves=True, method="trades", **config):
    workdir_lib.open_for_training(str(path), small_config(method, **{"batch_size": 12} | config))
    if curves:
        records = []
        for epoch in (1, 2):
            place = {"step": 10 * epoch, "epoch": epoch}
            accuracies = {"natural_accuracy": 0.4 * epoch, "robust_accuracy": 0.3 * epoch}
            records.append({"kind": "train", **place, "loss": 3.0 - epoch})
            records.append({"kind": "selection", **place, **accuracies})
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for attack, correct in (PAPER if results is None else results).items():
        write_result(path, attack, correct)
    return str(path)


ATTACKS = [
    {"name": "a1-gate2", "attacked": 9, "broken": 6, "accuracy_after": 0.3, "own_accuracy": None},
    {"name": "a2-yk", "attacked": 3, "broken": 0, "accuracy_after": 0.3, "own_accuracy": 0.4},
    {"name": "a6-square", "attacked": 3, "broken": 1, "accuracy_after": 0.2, "own_accuracy": 0.7},
]
MASKS = {
    "final_is_last_mask": 0.9, "masks_agree": 1.0, "masks_agree_adversarial": None,
    "last_mask_changes": 0.875, "gradient_cosine": -0.25,
    "depth": 3.0,  # a defence of one's own has numbers of its own
}  # fmt: skip


def write_adaptive(workdir, correct, **overrides):
    write_result(workdir, "adaptive", correct, **{"attacks": ATTACKS, "gate": MASKS} | overrides)


def write_examples(workdir, attack, broken, withstood=(), size=8):
    """Adversarial images that are kept of an attack, of these examples of the test split."""
    rng = np.random.default_rng(0)
    indices = np.array([*broken, *withstood])
    natural = rng.integers(0, 256, (len(indices), size, size, 3), np.uint8)
    adversarial = natural / np.float32(255)
    adversarial += np.float32(0.1) * rng.choice([-1, 1], natural.shape).astype(np.float32)
    content = {
        "step": np.array(20),
        "indices": indices,
        "labels": indices % len(CLASSES),
        "broken_by": np.array([attack] * len(broken) + [""] * len(withstood)),
        "natural": natural,
        "adversarial": np.clip(adversarial, 0, 1),
        "logits": rng.normal(0, 2, (len(indices), 2, len(CLASSES))).astype(np.float32),
        "classes": np.array(CLASSES),
    }
    directory = pathlib.Path(workdir) / "evaluation/best"
    write_arrays(directory / f"{attack}.examples.npz", content)


def write_diagnosis(workdir, verdict="masked", **overrides):
    check = {"name": "one step beats many", "threshold": 0.002, "severity": "masked"}
    fired = check | {"value": 0.25, "fired": True, "meaning": "a single step breaks more"}
    not_run = check | {"name": "adaptive attack beats AutoAttack", "value": None, "fired": None}
    epsilons, accuracy = [0.0, 8 / 255, 0.5, 1.0], [0.9, 0.5, 0.6, 0.0]
    record = {
        "verdict": verdict,
        "rows": [fired, not_run | {"meaning": "quote the adaptive worst case"}],
        "epsilon_curve": {"attack": "APGD", "epsilons": epsilons, "accuracy": accuracy},
        "compared_with": ["natural"],
    }
    write_result(workdir, "diagnostics", NATURAL, **record | overrides)
    arrays = {
        "landscape_offsets": np.linspace(-0.2, 0.2, 5, dtype=np.float32),
        "landscape_losses": np.random.default_rng(0).random((2, 5, 5), np.float32),
    }
    write_arrays(pathlib.Path(workdir) / "evaluation/best/diagnostics.npz", arrays)


def table_under(text, title):
    """The rows of the first Markdown table after a title, by header; bold cells without stars."""
    lines = text[text.index(title) :].splitlines()
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    table = [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]
