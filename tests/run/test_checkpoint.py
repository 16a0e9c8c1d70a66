"""Which checkpoints are kept, and which one is called the best."""

import numpy as np
import pytest

from ancra_jax.errors import UsageError
from ancra_jax.run.checkpoint import Checkpoints


def test_the_best_checkpoint_of_each_of_the_weights_is_kept(tmp_path):
    weights = ("raw", "ema", "swa")
    names = ("robust_accuracy", "ema_robust_accuracy", "swa_robust_accuracy")
    checkpoints = Checkpoints(tmp_path / "checkpoints", weights=weights)
    accuracies = [(0.5, 0.1), (0.3, 0.6, 0.1), (0.2, 0.2, 0.7), (0.1, 0.2, 0.1), (0.1, 0.1, 0.1)]
    for step, values in enumerate(accuracies, 1):
        checkpoints.save(step, {"step": np.int32(step)}, dict(zip(names, values, strict=False)))
    checkpoints.save(6, {"step": np.int32(6)})
    checkpoints.save(7, {"step": np.int32(7)})
    checkpoints.close()
    reopened = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reopened.steps() == [1, 2, 3, 6, 7]
    assert [reopened.best_step(name) for name in weights] == [1, 2, 3]


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=rf"--workdir: .*{tmp_path}/file/checkpoints"):
        Checkpoints(tmp_path / "file/checkpoints")
