"""Machines to compile for without having them, and what they can do at most."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jaxlib import xla_client

from ancra_jax.errors import UsageError
from benchmarks.peaks import PEAKS, V5E


class Target(NamedTuple):
    """Devices of one kind."""

    platform: str  # 'gpu', 'tpu' or 'cpu'
    topology: str  # of the devices, as the compiler calls it
    bandwidth: float = 0.0  # bytes/s of a device's memory; 0: not known
    peak: dict[str, float] = {}  # noqa: RUF012  FLOP/s by dtype
    launch: float = 0.0  # seconds to launch a kernel
    source: str = ""  # of these numbers


_H100 = {
    "bandwidth": 3.0e12,
    "peak": {"bfloat16": 798e12, "float32": PEAKS["H100"]["float32"]},
    "launch": 2.5e-6,
    "source": "a copy and a bfloat16 matrix product as measured on an H100 SXM; float32 (TF32): "
    "data sheet",
}
_V5E = {
    "bandwidth": V5E.bandwidth,
    "peak": PEAKS[V5E.name],
    "source": "data sheet",
}
TARGETS = {
    "h100": Target("gpu", "1x1x1", **_H100),
    "h100x8": Target("gpu", "1x1x8", **_H100),
    "v5e-4": Target("tpu", "v5e:2x2", **_V5E),
    "v5e-16": Target("tpu", "v5e:4x4", **_V5E),
    "cpu": Target("cpu", "1"),
}

# What XLA has to know of an H100 SXM with 80 GB, in place of the device.
_H100_CONFIG = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
CUDA_VARIABLE, TPU_VARIABLE = "ANCRA_CUDA_PLUGIN", "TPU_LIBRARY_PATH"
_TPU_ENVIRONMENT = {  # that of a host with TPUs, which is not asked for
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


def devices(name: str, plugin: str | None = None) -> list[Any]:
    """The devices of a target, which can be compiled for and nothing else.

    Args:
      name: of ``TARGETS``.
      plugin: the compiler's file, see `compiler`.

    Raises:
      UsageError: the compiler is not there.
    """
    target = TARGETS[name]
    if target.platform == "cpu":
        return jax.devices("cpu")[:1]
    library = str(compiler(target.platform, plugin))
    if target.platform == "tpu":
        os.environ[TPU_VARIABLE] = library
        os.environ.update(_TPU_ENVIRONMENT)  # JAX may have found nothing for them
        return topologies.get_topology_desc(target.topology, platform="tpu").devices
    if not xla_client.pjrt_plugin_loaded("cuda"):
        _cuda.append(xla_client.load_pjrt_plugin_dynamically("cuda", library))
    if not xla_client.pjrt_plugin_initialized("cuda"):
        xla_client.initialize_pjrt_plugin("cuda")
    options = {"target_config": _H100_CONFIG, "topology": target.topology}
    if not _cuda:  # JAX has loaded it
        return topologies.get_topology_desc("", platform="cuda", **options).devices
    found = xla_client.make_c_api_device_topology(_cuda[0], "", **options)
    return found._make_compile_only_devices()


_cuda: list[Any] = []  # the plugin, which can be loaded once


def compiler(platform: str, plugin: str | None = None) -> Path:
    """The shared library that compiles for GPUs or TPUs.

    Args:
      platform: ``'gpu'`` or ``'tpu'``.
      plugin: its path; by default that in the environment, or the installed package's.

    Raises:
      UsageError: it is not there.
    """
    variable, module, file, package = {
        "gpu": (
            CUDA_VARIABLE,
            "jax_plugins.xla_cuda12",
            "xla_cuda_plugin.so",
            f"jax-cuda12-pjrt=={jax.__version__}",
        ),
        "tpu": (TPU_VARIABLE, "libtpu", "libtpu.so", _libtpu()),
    }[platform]
    if named := plugin or os.environ.get(variable):
        if Path(named).is_file():
            return Path(named)
        raise UsageError(f"{'--plugin' if plugin else variable}={named}: there is no such file")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise UsageError(
        f"no compiler for {platform.upper()}s: pip install --no-deps --target=compilers {package}, "
        f"then --plugin=compilers/{module.replace('.', '/')}/{file} (or {variable})"
    )


def _libtpu() -> str:
    """The release that belongs to this JAX."""
    needed = next(one for one in importlib.metadata.requires("jax") if one.startswith("libtpu"))
    return needed.partition(";")[0].strip().removesuffix(".*")
