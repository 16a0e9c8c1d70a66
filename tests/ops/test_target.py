"""What depends on the kind of device."""

import jax
import jax.numpy as jnp

from ancra_jax.ops.target import compiler_options, traced_for


def test_options_that_this_xla_does_not_have_are_left_out():
    options = compiler_options(xla_backend_optimization_level=0, xla_cpu_of_tomorrow=1)
    assert options["xla_backend_optimization_level"] == 0 and "xla_cpu_of_tomorrow" not in options
    add = jax.jit(lambda x: x + 1, compiler_options=options)
    assert add(jnp.ones(())) == 2
    with traced_for("gpu"):
        assert compiler_options(xla_backend_optimization_level=0) is None
