"""A pretrained classifier with its normalisation: ``python examples/pretrained.py``.

Models of Hugging Face (``FlaxAutoModelForImageClassification``) and those converted from timm take
normalised images, channels first, and return an object with ``logits``. This one is small and made
here, so that nothing is downloaded; yours takes its place.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from ancra_jax import attacks

MEAN = jnp.array([0.485, 0.456, 0.406])  # image_mean of the processor, `mean` of timm's data config
STD = jnp.array([0.229, 0.224, 0.225])  # image_std


class Pretrained:
    """Called as those of Hugging Face: ``model(pixel_values=..., params=..., train=False)``."""

    def __init__(self):
        kernel = jax.random.normal(jax.random.key(0), (3 * 32 * 32, 10))
        self.params = {"classifier": {"kernel": 0.01 * kernel, "bias": jnp.zeros(10)}}

    def __call__(self, pixel_values, params=None, train=False):
        weights = (params or self.params)["classifier"]
        features = pixel_values.reshape(len(pixel_values), -1)
        return SimpleNamespace(logits=features @ weights["kernel"] + weights["bias"])


pretrained = Pretrained()


def logits(params, images):
    """Take what the attacks give: [batch, height, width, channels] with pixels in [0, 1]."""
    normalised = (images - MEAN) / STD
    outputs = pretrained(pixel_values=normalised.transpose(0, 3, 1, 2), params=params, train=False)
    return outputs.logits


# The normalisation is a part of the model: epsilon stays on the scale of the pixels. The parameters
# are an argument, so that they are no constants of the compiled program.
model = jax.tree_util.Partial(logits, pretrained.params)
images = jax.random.uniform(jax.random.key(1), (16, 32, 32, 3))  # yours: pixels in [0, 1]
labels = model(images).argmax(-1)  # yours: class numbers
result = attacks.autoattack(model, images, labels, epsilon=1 / 255, num_steps=5, num_queries=20)
print(result.robust_accuracy, result.warnings)
