"""Times Auto-PGD in JAX against a PyTorch loop of the same attack on the same weights.

    python benchmarks/autoattack.py --output=benchmark.json

Each library runs in a process of its own, one after the other, on a small convolutional network
(3x3 convolutions 3-24-48-96 with strides 1, 2, 2, mean over space, 10 classes) with seeded weights,
from the same images and starts. Compilation is timed apart; the fastest of ``--repeats`` runs
counts. Peak memory is the growth of the process's resident memory over what the imports took.
Without PyTorch the JAX half runs alone.

JAX runs twice: on the network as anyone would write it, and (``jax_padded``) with a fourth input
channel of zeros, because XLA's convolutions on CPU are several times slower on 3 channels than on
4. The logits are the same.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np

EPSILON = 8 / 255
RHO, MOMENTUM = 0.75, 0.75


def network(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Seeded weights: HWIO kernels, or (in, out), and biases."""
    rng = np.random.default_rng(seed)
    shapes = {"c1": (3, 3, 3, 24), "c2": (3, 3, 24, 48), "c3": (3, 3, 48, 96), "fc": (96, 10)}
    weights = {}
    for name, shape in shapes.items():
        kernel = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        bias = 0.1 * rng.standard_normal(shape[-1])
        weights[name] = (kernel.astype(np.float32), bias.astype(np.float32))
    return weights


def inputs(batch: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, and the noise of the starts in [-1, 1]; NHWC."""
    rng = np.random.default_rng(seed)
    images = rng.random((batch, 32, 32, 3), np.float32)
    noise = 2 * rng.random(images.shape, np.float32) - 1
    return images, rng.integers(0, 10, batch), noise


def run_jax(batch: int, steps: int, repeats: int, padding: int = 0) -> dict[str, Any]:
    """The package's attack, on a network that adds ``padding`` channels of zeros to its input."""
    import jax
    import jax.numpy as jnp

    from ancra_jax import attacks
    from ancra_jax.attacks.threat_models import at_distance

    def logits(weights, x):
        for name, stride in (("c1", 1), ("c2", 2), ("c3", 2)):
            kernel, bias = weights[name]
            if name == "c1":
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padding)))
                kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, padding), (0, 0)))
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(1, 1), (1, 1)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + bias)
        kernel, bias = weights["fc"]
        return x.mean(axis=(1, 2)) @ kernel + bias

    base = resident_mib()
    model = jax.tree_util.Partial(logits, jax.tree.map(jnp.asarray, network()))
    images, labels, noise = map(jnp.asarray, inputs(batch))
    threat_model = attacks.Linf(EPSILON)
    start = at_distance(threat_model, images, noise, EPSILON)

    def attack():
        found = attacks.apgd(
            model, images, labels, threat_model, loss="ce", start=start, num_steps=steps
        )
        return jax.block_until_ready(found)

    first, found = timed(attack)
    best = min(timed(attack)[0] for _ in range(repeats))
    return {
        "library": f"jax {jax.__version__}",
        "device": str(jax.devices()[0].device_kind),
        "first_run_seconds": first,
        "compile_seconds": first - best,
        "seconds": best,
        "peak_mib": resident_mib(peak=True) - base,
        "median_best_loss": float(np.median(found.best_loss)),
        "fooled": int(found.success.sum()),
    }


def run_torch(batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """The same attack as a plain PyTorch loop."""
    import torch
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = resident_mib()
    weights = {
        name: tuple(
            torch.tensor(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T, device=device)
            for a in arrays
        )
        for name, arrays in network().items()
    }
    images, labels, noise = inputs(batch)
    x0 = torch.tensor(images.transpose(0, 3, 1, 2), device=device).contiguous()
    y = torch.tensor(labels, device=device)
    t = torch.tensor(noise.transpose(0, 3, 1, 2), device=device).contiguous()
    start = (x0 + EPSILON * t / (wide(t.abs().flatten(1).amax(1)) + 1e-12)).clamp(0, 1)

    def logits(x):
        for name, stride in (("c1", 1), ("c2", 2), ("c3", 2)):
            x = functional.relu(functional.conv2d(x, *weights[name], stride=stride, padding=1))
        return functional.linear(x.mean((2, 3)), *weights["fc"])

    def evaluate(x):
        x = x.detach().requires_grad_()
        z = logits(x)
        values = functional.cross_entropy(z, y, reduction="none")
        (gradients,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), gradients, z.detach().argmax(1) != y

    def project(x):
        return torch.minimum(torch.maximum(x, x0 - EPSILON), x0 + EPSILON).clamp(0, 1)

    def attack():
        window, shrink, shortest = (max(int(f * steps), 1) for f in (0.22, 0.03, 0.06))
        x, previous = start, start
        values, gradients, fooled = evaluate(x)
        adversarial = torch.where(wide(fooled), x, x0)
        best_x, best_gradients, best = x.clone(), gradients.clone(), values.clone()
        checked, halved = best.clone(), torch.ones_like(fooled)
        last, rises = torch.zeros_like(values), torch.zeros_like(values)
        step_size = torch.full_like(values, 2 * EPSILON)
        end = window
        for i in range(steps):
            a = 1.0 if i == 0 else MOMENTUM
            stepped = project(x + wide(step_size) * gradients.sign())
            moved = project(x + a * (stepped - x) + (1 - a) * (x - previous))
            previous, x = x, moved
            values, gradients, wrong = evaluate(x)
            fooled = fooled | wrong
            adversarial = torch.where(wide(wrong), x, adversarial)
            better = values > best
            best_x = torch.where(wide(better), x, best_x)
            best_gradients = torch.where(wide(better), gradients, best_gradients)
            best = torch.where(better, values, best)
            rises = rises + (values > last)
            last = values
            if i + 1 == end:
                halve = (rises <= RHO * window) | (~halved & (checked >= best))
                step_size = torch.where(halve, step_size / 2, step_size)
                x = torch.where(wide(halve), best_x, x)
                gradients = torch.where(wide(halve), best_gradients, gradients)
                checked, halved, rises = best, halve, torch.zeros_like(rises)
                window = max(window - shrink, shortest)
                end += window
        if device == "cuda":
            torch.cuda.synchronize()
        return fooled, best

    first, (fooled, best_loss) = timed(attack)
    best = min(timed(attack)[0] for _ in range(repeats))
    return {
        "library": f"torch {torch.__version__}",
        "device": device,
        "first_run_seconds": first,
        "compile_seconds": 0.0,
        "seconds": best,
        "peak_mib": resident_mib(peak=True) - base,
        "median_best_loss": float(best_loss.median()),
        "fooled": int(fooled.sum()),
    }


def wide(x):
    """Lets one number per example broadcast over its image."""
    return x[:, None, None, None]


def timed(function):
    """Seconds of a call, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def resident_mib(peak: bool = False) -> float:
    """Resident memory of this process, or its largest so far."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def commit() -> str:
    """The commit that was measured, marked if the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


RUNS = {"jax": run_jax, "jax_padded": partial(run_jax, padding=1), "torch": run_torch}


def main() -> None:
    """Runs both halves and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=None)
    parser.add_argument("--only", choices=list(RUNS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run = RUNS[args.only]
        print(json.dumps(run(args.batch, args.steps, args.repeats)))
        return

    report: dict[str, Any] = {
        "attack": "APGD-CE, Linf 8/255",
        "batch": args.batch,
        "steps": args.steps,
        "repeats": args.repeats,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
    }
    for library in RUNS:
        if library == "torch" and importlib.util.find_spec("torch") is None:
            print("PyTorch is not installed: nothing to compare with", file=sys.stderr)
            continue
        command = [sys.executable, __file__, f"--only={library}"]
        command += [f"--{name}={getattr(args, name)}" for name in ("batch", "steps", "repeats")]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report[library] = json.loads(child.stdout.splitlines()[-1])
    if "torch" in report:
        for library in ("jax", "jax_padded"):
            faster = report["torch"]["seconds"] / report[library]["seconds"]
            report[library]["times_faster_than_torch"] = faster
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        with open(args.output, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
