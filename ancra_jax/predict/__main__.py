"""``ancra predict``, or ``python -m ancra_jax.predict``."""

from ancra_jax import cli
from ancra_jax.predict import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags)
