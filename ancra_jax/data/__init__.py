"""Data sets, their loading and caching, and the batches made of them on the device."""

from ancra_jax.ops.extras import explained

with explained():  # Pillow, which the extras bring
    from ancra_jax.data.augmentation import POLICIES, Augmentation, augment
    from ancra_jax.data.dataset import Dataset, Split
    from ancra_jax.data.pipeline import (
        BatchPlan,
        DeviceSplit,
        ExtraDraws,
        HostExamples,
        StreamedSplit,
        batches_for_evaluation,
        batches_per_epoch,
        epoch_permutation,
        put_on_device,
        to_float,
    )
    from ancra_jax.data.registry import Contents, SourceOptions, inspect, load, names, register
    from ancra_jax.data.sources import cifar, digits, folder, tiny_imagenet  # noqa: F401 (they register)
    from ancra_jax.data.splits import (
        check_count,
        check_held_out,
        extend,
        hold_out,
        load_extra,
        subset,
    )

__all__ = [
    "POLICIES",
    "Augmentation",
    "BatchPlan",
    "Contents",
    "Dataset",
    "DeviceSplit",
    "ExtraDraws",
    "HostExamples",
    "SourceOptions",
    "Split",
    "StreamedSplit",
    "augment",
    "batches_for_evaluation",
    "batches_per_epoch",
    "check_count",
    "check_held_out",
    "epoch_permutation",
    "extend",
    "hold_out",
    "inspect",
    "load",
    "load_extra",
    "names",
    "put_on_device",
    "register",
    "subset",
    "to_float",
]
