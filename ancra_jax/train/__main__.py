"""``ancra train``, or ``python -m ancra_jax.train``."""

from ancra_jax import cli

if __name__ == "__main__":
    cli.start("ancra_jax.train")
