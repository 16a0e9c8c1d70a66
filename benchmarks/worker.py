"""One library's side of a comparison: a process that runs its workload whenever it is told to.

Started by ``benchmarks.turns``, which sends commands on standard input and reads one line of JSON
for each from standard output.
"""

import importlib
import json
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.measure import resident_mib
from benchmarks.peaks import matmul_peak

LIBRARIES = {
    "jax": "benchmarks.jax_workloads",
    "jax_stock": "benchmarks.jax_workloads",  # with JAX's own convolution
    "torch": "benchmarks.torch_workloads",
    "torch_compile": "benchmarks.torch_workloads",
    "reference": "benchmarks.reference_autoattack",
    "adv_lib": "benchmarks.adv_lib_attacks",
}


def main():
    """Builds the workload that the argument describes, then obeys until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    request = json.loads(sys.argv[1])
    library = importlib.import_module(LIBRARIES[request["library"]])
    base = resident_mib()
    workload, facts = _build(library, request)
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "run":
            answer = _run(library, workload, int(arguments[0]))
        else:
            device_mib = library.device_mib()
            peak = resident_mib(peak=True) - base if device_mib is None else device_mib
            answer = {"peak_mib": peak}
        print(json.dumps(answer), file=answers, flush=True)


def _build(library: ModuleType, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    row, config = request["row"], request["config"]
    facts: dict[str, Any] = {}
    if request["library"].startswith("jax"):
        import jax

        jax.config.update("jax_enable_compilation_cache", False)  # compile times are to be measured
        workload = library.create(row, config, request["library"] == "jax_stock")
        np.savez(request["shared"], **workload.shared)
        facts["operations"] = workload.operations
        facts["version"] = f"jax {jax.__version__}"
    else:
        import torch

        with np.load(request["shared"]) as file:
            shared = dict(file)
        workload = library.create(row, config, shared, request["library"] == "torch_compile")
        facts["version"] = f"torch {torch.__version__}"
    facts["device_kind"] = library.device_kind()  # not before: it starts JAX
    names = ("images", "compile_seconds", "loss", "robust_accuracy", "robust")
    facts |= {name: getattr(workload, name) for name in names}
    size = 1024 if library.device_mib() is None else 8192
    facts["matmul_flops"] = matmul_peak(library.matmul(size, config["model"]["dtype"]), size)
    return workload, facts


def _run(library, workload, times):
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = workload.run()
    library.waited(result)
    return {
        "seconds": (time.perf_counter() - wall) / times,
        "processor_seconds": (time.process_time() - processor) / times,
    }


if __name__ == "__main__":
    main()
