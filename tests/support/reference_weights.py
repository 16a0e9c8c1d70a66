"""Seeded weights: those of the reference networks' golden numbers, and random ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import GOLDEN


def reference_names(stem: str) -> dict[str, list[int]]:
    """Names and shapes of the state dict in ``golden/<stem>.json``."""
    return json.loads((GOLDEN / f"{stem}.json").read_text())["names"]


def seeded_state_dict(names: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights by PyTorch name, drawn from one seed per position in the sorted names.

    Kernels are OIHW and (out, in), as PyTorch stores them; everything is float32.
    """
    state_dict = {}
    for i, (name, shape) in enumerate(sorted(names.items())):
        normal = np.random.default_rng([7, i]).standard_normal(shape)
        if name.endswith("running_var"):
            value = 1 + 0.2 * np.abs(normal)
        elif name.endswith("running_mean"):
            value = 0.1 * normal
        elif len(shape) > 1:
            value = normal * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(".weight"):
            value = 1 + 0.1 * normal
        else:
            value = 0.1 * normal
        state_dict[name] = value.astype(np.float32)
    return state_dict


def random_variables(model, image_shape: tuple[int, ...], seed: int = 0):
    """Flax variables of a network, sooner than ``model.init`` would compile."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape, np.float32)
        match path[-1].key:
            case "kernel":
                return normal * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
            case "scale" | "var":
                return 1 + np.float32(0.1) * np.abs(normal)
            case _:
                return np.float32(0.1) * normal

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))
