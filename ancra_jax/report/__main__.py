"""``ancra report``, or ``python -m ancra_jax.report``."""

from ancra_jax import cli

if __name__ == "__main__":
    cli.start("ancra_jax.report")
