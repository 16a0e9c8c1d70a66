"""``python -m ancra_jax.train``."""

from ancra_jax import cli
from ancra_jax.train import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags)
