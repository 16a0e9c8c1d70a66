"""Networks that are as if they were trained."""

from ancra_jax.config.schema import ModelConfig
from ancra_jax.run.trained import TrainedModel, create_network
from tests.support import small_runs
from tests.support.reference_weights import random_variables

assert small_runs  # registers the network


def random_model(shape=(8, 8, 3), seed=0, reverse_attention=True, **options):
    architecture = ModelConfig(name="tiny", width=4, reverse_attention=reverse_attention, **options)
    classes = ("cat", "dog", "owl")
    network = create_network(architecture, len(classes))
    variables = random_variables(network, shape, seed)
    return TrainedModel(variables, architecture, network, classes, shape, "linf", 0.1, {"seed": 0})
