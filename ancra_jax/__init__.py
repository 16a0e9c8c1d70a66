"""ancra_jax: robust image classifiers in JAX, after the ANCRA paper, and honest evaluation."""

__version__ = "0.1.0"
