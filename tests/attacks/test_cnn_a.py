import jax
import numpy as np

from tests.support import cnn_a


def test_logits_agree_with_the_record():
    net = cnn_a.load()
    logits = jax.jit(lambda f, x: f(x))(net.logits_fn, net.images)
    np.testing.assert_allclose(logits, net.ref["logits"], atol=2e-5, rtol=1e-5)
