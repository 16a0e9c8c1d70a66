"""The small adversarially trained network on which the reference attacks were recorded.

Network: 3x3 convolutions 3-24 (stride 1), 24-48 (stride 2), 48-96 (stride 2), padding 1, with bias
and ReLU; mean over space; linear 96-10. Threat model of every record: Linf, epsilon = 8/255.

``golden/cnn_a.npz`` and ``golden/cnn_a_start.npz`` are slices of one larger record, so that each
file stays below 1 MB: of 400 images with their labels, logits and ``robust_*`` flags the first 200;
of the ``apgd_*`` and ``fab_*`` runs (on the first 32 images) everything, except that
``apgd_*_x_best`` keeps 8 of the 32 images.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.autoattack import logits, weights_of
from tests.support import GOLDEN

EPSILON = 8 / 255


def load() -> SimpleNamespace:
    """Loads network, images and records.

    Returns:
      A namespace of ``model`` (a ``jax.tree_util.Partial``), ``images`` (float32, NHWC, 200),
      ``labels`` (int32), ``epsilon``, and ``ref``: a dict of every recorded array, by its name:
      ``logits``; for the first 32 images ``start_uniform01`` (u in [0, 1]; the start is
      t = 2u - 1), ``apgd_<ce|dlr|t2|t3>_<best_loss|robust|best_norm|x_best>`` (``x_best`` is
      (x_best - x) * 255 / 8, float16), ``fab_<t2|t3>_<norm|adversarial>``; for all images
      ``robust_<attack>_seed<0|1|2>``.
    """
    ref = {}
    for file in ("cnn_a.npz", "cnn_a_start.npz"):
        with np.load(GOLDEN / file) as arrays:
            ref |= dict(arrays)
    weights = jax.tree.map(jnp.asarray, weights_of(ref))
    return SimpleNamespace(
        model=jax.tree_util.Partial(logits, weights),
        images=ref.pop("images").astype(np.float32) / 255,
        labels=ref.pop("labels").astype(np.int32),
        epsilon=EPSILON,
        ref=ref,
    )
