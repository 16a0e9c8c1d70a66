"""``python -m ancra_jax.evaluate``."""

from ancra_jax import cli
from ancra_jax.evaluate import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags)
