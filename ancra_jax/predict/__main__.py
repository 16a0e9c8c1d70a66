"""``ancra predict``, or ``python -m ancra_jax.predict``."""

from ancra_jax import cli

if __name__ == "__main__":
    cli.start("ancra_jax.predict")
