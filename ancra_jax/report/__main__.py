"""``python -m ancra_jax.report``."""

from ancra_jax import cli
from ancra_jax.report import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags)
