"""Training: the loop, the one jitted step, the optimiser."""

from ancra_jax.train.loop import define_flags as define_flags
from ancra_jax.train.loop import main as main
from ancra_jax.train.loop import run as run
from ancra_jax.train.result import TrainingResult as TrainingResult
