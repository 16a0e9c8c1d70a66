"""``ancra evaluate``, or ``python -m ancra_jax.evaluate``."""

from ancra_jax import cli

if __name__ == "__main__":
    cli.start("ancra_jax.evaluate")
