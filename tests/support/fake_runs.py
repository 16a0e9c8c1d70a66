"""Work directories of runs that never ran, for tests of what reads them."""

import json
import pathlib

import numpy as np

from ancra_jax.results.store import SCHEMA
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.files import write_arrays
from tests.support.small_runs import small_config

EXAMPLES = 10
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
        "data_fingerprint": "0123",
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
    write_arrays(directory / f"{attack}.npz", {"correct": correct})
    (directory / f"{attack}.json").write_text(json.dumps(record))


def make_run(path, results=None, checkpoint="best", curves=True, method="trades", **config):
    workdir_lib.open_for_training(str(path), small_config(method, **config))
    if curves:
        records = []
        for epoch in (1, 2):
            record = {"step": 10 * epoch, "epoch": epoch, "loss": 3.0 - epoch}
            records.append({"kind": "train"} | record)
            record = {"natural_accuracy": 0.4 * epoch, "robust_accuracy": 0.3 * epoch}
            records.append({"kind": "selection", "step": 10 * epoch, "epoch": epoch} | record)
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for attack, correct in (PAPER if results is None else results).items():
        write_result(path, attack, correct, checkpoint)
    return str(path)
