"""The paper's tables as data: their rows, how each is trained and evaluated, what is claimed.

The columns are named as the results of an evaluation, without the number of steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ancra_jax.results.names import HEADS, NATURAL

Claim = Mapping[str, float]
"""What the paper prints, in %, by column; columns for which it is not known are left out."""

MEAN = "mean"
FINAL = (NATURAL, "pgd", "fgsm", "cw", "autoattack")
WITH_P = tuple(f"{attack}{HEADS}" for attack in FINAL[1:4])
ABLATION = (NATURAL, WITH_P[0])

BASELINES = ("pgd_at", "trades", "mart", "sat", "trades_awp", "trades_s2o", "udr_trades")
ANCRA = ("pgd_at_ancra", "trades_ancra", "mart_ancra")
FURTHER = ("at_awp", "at_s2o", "udr_pgd")
WITH_REVERSE_ATTENTION = (*ANCRA, "trades_ra")
STANDS_FOR = {"trades_awp": "AWP", "trades_s2o": "S2O", "udr_trades": "UDR"}
"""What the paper calls the rows whose names there tell no base loss; here it is that of TRADES."""


@dataclass(frozen=True)
class TableRow:
    """One row: a run, and which of its checkpoints are evaluated."""

    title: str  # as in the paper
    data: str  # the data set, which is the name of a file in ``configs/``
    method: str  # the argument of that file
    claims: Mapping[str, Claim] = field(default_factory=lambda: {"best": {}})  # by checkpoint
    suite: str = "paper"  # of ``ancra_jax.evaluate``, which has the attacks of the columns
    budget: str = ""  # of the adaptive attacks, where it is not the default

    @property
    def suites(self) -> tuple[str, ...]:
        """The suite, and for a network with reverse attention the attacks through its masks."""
        if self.suite in ("worst_case", "features"):  # which have them, or no attacks
            return (self.suite,)
        method = self.method.partition(",")[0]
        return (self.suite, "adaptive") if method in WITH_REVERSE_ATTENTION else (self.suite,)

    @property
    def name(self) -> str:
        """What names the row on the command line, and its directories; equal for equal runs."""
        return f"{self.data}/{self.method.replace(',', '-')}"


@dataclass(frozen=True)
class PaperTable:
    """A table."""

    title: str  # what it shows
    columns: tuple[str, ...]  # what the claims are about
    rows: tuple[TableRow, ...]  # of the paper first, then those without a claim
    notes: tuple[str, ...] = ()  # what is particular about its rows


def method_title(method: str) -> str:
    """Return ``'TRADES-ANCRA'`` for ``'trades_ancra'``."""
    return "Natural" if method == "natural" else method.upper().replace("_", "-")


_FINAL_AND_MEAN: dict[str, dict[str, tuple[float | None, ...]]] = {
    "cifar10": {
        "pgd_at": (80.90, 44.35, 58.41, 46.72, 42.14, 47.91),
        "trades": (78.92, 48.40, 59.60, 47.59, 45.44, 50.26),
        "mart": (79.03, 48.90, 60.86, 45.92, 43.88, 49.89),
        "sat": (63.28, 43.57, 50.13, 47.47, 39.72, 45.22),
        "trades_awp": (76.38, 48.88, 57.47, 48.22, 44.65, 49.81),
        "trades_s2o": (40.09, 24.05, 29.76, 47.00, 44.00, 36.20),
        "udr_trades": (57.80, 39.79, 45.02, 46.92, 34.73, 41.62),
        "pgd_at_ancra": (85.10, 89.03, 87.00, 89.23, 59.15, 81.10),
        "trades_ancra": (81.70, 82.96, 82.74, 83.01, 59.70, 77.10),
        "mart_ancra": (84.88, 88.56, 87.95, 88.77, 59.62, 81.23),
        "trades_anc": (80.77, None, None, None, 48.51, None),
        "trades_ra": (80.46, None, None, None, 61.02, None),
    },
    "cifar100": {
        "pgd_at": (56.21, 19.41, 30.00, 41.76, 17.76, 27.23),
        "trades": (53.46, 25.37, 32.97, 43.59, 21.35, 30.82),
        "mart": (53.26, 25.06, 33.35, 38.07, 21.04, 29.38),
        "sat": (42.55, 23.30, 28.36, 41.03, 18.73, 27.86),
        "trades_awp": (54.53, 27.35, 34.47, 44.91, 21.98, 31.18),
        "trades_s2o": (26.66, 13.11, 16.83, 43.00, 21.00, 23.49),
        "udr_trades": (33.63, 20.61, 24.19, 33.77, 16.41, 23.75),
        "pgd_at_ancra": (59.73, 58.10, 58.45, 58.58, 34.44, 52.39),
        "trades_ancra": (53.73, 51.24, 52.17, 52.55, 35.81, 47.94),
        "mart_ancra": (60.10, 58.40, 58.74, 59.41, 35.05, 52.90),
    },
}
_WITH_P = {  # PGD, FGSM and C&W on the auxiliary heads too
    ("cifar10", "trades"): _FINAL_AND_MEAN["cifar10"]["trades"][1:4],  # it has none, in Table 3
    ("cifar10", "pgd_at_ancra"): (54.43, 58.23, 66.36),
    ("cifar10", "trades_ancra"): (61.68, 61.56, 72.36),
    ("cifar10", "mart_ancra"): (56.96, 60.43, 71.06),
    ("cifar10", "trades_anc"): (54.18, 63.44, 49.84),
    ("cifar10", "trades_ra"): (61.59, 61.48, 72.15),
}


def _claim(*numbers: float | None) -> Claim:
    columns = zip((*FINAL, MEAN, *WITH_P), numbers, strict=False)
    return {column: number for column, number in columns if number is not None}


CLAIMS = {
    (data, method): _claim(*numbers, *_WITH_P.get((data, method), ()))
    for data, methods in _FINAL_AND_MEAN.items()
    for method, numbers in methods.items()
}
"""By data set and method, what Tables 1 to 3 print; where two of them differ, what Table 1 does."""


def _rows(data: str, methods: Iterable[str]) -> tuple[TableRow, ...]:
    """Return the rows of methods with what the paper prints of them."""
    return tuple(
        TableRow(
            STANDS_FOR.get(method, method_title(method)),
            data,
            method,
            {"best": CLAIMS.get((data, method), {})},
        )
        for method in methods
    )


def _without_heads(method: str, **others: float) -> TableRow:
    """Return a row of Table 2 that has no attack on heads; ``others`` replace Table 1's numbers."""
    (row,) = _rows("cifar10", [method])
    claim = {name: row.claims["best"][name] for name in FINAL}
    return replace(row, claims={"best": {**claim, **others}})


def _ablation(title: str, options: str, *claims: Sequence[float]) -> TableRow:
    """Return a row of TRADES-ANCRA; claims are of its best and, if given, last checkpoint."""
    checkpoints = zip(("best", "last"), claims, strict=False)
    by_column = {name: dict(zip(ABLATION, claim, strict=False)) for name, claim in checkpoints}
    return TableRow(title, "cifar10", f"trades_ancra{options}", by_column, "quick")


PLAIN = "targeted=false"
TABLES = {
    "table1": PaperTable(
        "Table 1: attacks on the final logits, ResNet-18",
        (*FINAL, MEAN),
        _rows("cifar10", (*BASELINES, *ANCRA))
        + _rows("cifar100", (*BASELINES, *ANCRA))
        + _rows("cifar10", FURTHER)
        + _rows("cifar100", FURTHER),
        (
            "The paper's AWP, S2O and UDR are names without a base loss. Here they stand on "
            "TRADES' loss, as SAT does: `trades_awp`, `trades_s2o`, `udr_trades`. On that of "
            "PGD-AT they are rows without a claim.",
        ),
    ),
    "table2": PaperTable(
        "Table 2: attacks on the final logits, and on the auxiliary heads too, CIFAR-10, ResNet-18",
        (NATURAL, *WITH_P, *FINAL[1:4]),
        (
            _without_heads("trades"),
            *_rows("cifar10", ["trades_ancra"]),
            _without_heads("pgd_at"),
            *_rows("cifar10", ["pgd_at_ancra"]),
            _without_heads("mart", natural=79.09),
            *_rows("cifar10", ["mart_ancra"]),
        ),
        ("Of MART the paper prints the natural accuracy 79.09 in Table 2, 79.03 in Table 1.",),
    ),
    "table3": PaperTable(
        "Table 3: the parts of ANCRA, heads attacked too, CIFAR-10, ResNet-18",
        (NATURAL, *WITH_P, "autoattack"),
        _rows("cifar10", ("trades", "trades_anc", "trades_ra", "trades_ancra")),
    ),
    "table4": PaperTable(
        "Table 4: choice of the negatives, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        # Soft-LS and Hard-LS are the paper's names.
        (
            _ablation("Random", f",{PLAIN}", (81.44, 62.64), (81.78, 61.71)),
            _ablation("Soft-LS", f",strategy=soft,{PLAIN}", (82.10, 61.83), (80.62, 58.47)),
            _ablation("Hard-LS", f",strategy=hard,{PLAIN}", (82.30, 62.53), (82.13, 60.98)),
            _ablation("Targeted attack", "", (81.36, 63.08), (82.18, 62.02)),
            _ablation("Easy", f",strategy=easy,{PLAIN}", (), ()),
            _ablation("Soft-LS, targeted", ",strategy=soft", (), ()),
            _ablation("Hard-LS, targeted", ",strategy=hard", (), ()),
            _ablation("Easy, targeted", ",strategy=easy", (), ()),
        ),
    ),
    "alpha": PaperTable(
        "Ablation of alpha, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        (
            _ablation("alpha = 1", "", (81.70, 61.68)),
            *(_ablation(f"alpha = {one}", f",alpha={one}", ()) for one in (0, 0.25, 0.5, 0.75)),
        ),
    ),
    "tiny_imagenet": PaperTable(
        "Tiny-ImageNet, PreActResNet-18",
        (*FINAL, MEAN),
        _rows("tiny_imagenet", (*BASELINES, *ANCRA, *FURTHER)),
    ),
}

CONTROLS = (
    *("trades", "trades_beta4", "trades_beta9", "trades_beta12"),
    *("trades_2x", "trades_4x", "trades_shallow"),
)
"""What a part of ANCRA, or what takes its place, has to be better than."""
PARTS = ("trades_ra", "trades_ra_stopped", "trades_ra_random", "trades_ancra")
VARIANTS = (
    *("trades_margin", "trades_true_anc", "trades_batch_anc"),
    *("trades_branches", "trades_soft_ra"),
)
STUDIED = (*CONTROLS, *PARTS, *VARIANTS)
COEFFICIENTS = {
    "trades_margin": ("margin", (0.03, 0.1, 0.3, 1)),
    "trades_true_anc": ("zeta", (0.3, 1, 3)),
    "trades_batch_anc": ("zeta", (0.3, 1, 3)),
    "trades_soft_ra": ("temperature", (0.3, 1, 3)),
}
"""What a variant has to be given, and what is tried; TRADES is beside them."""

STUDIES = {
    "variants": PaperTable(
        "Controls and variants of ANCRA on digits, ResNet-18 of width 8",
        (),
        tuple(
            TableRow(method_title(one), "digits", one, suite="worst_case", budget="quick")
            for one in STUDIED
        ),
    ),
    "coefficients": PaperTable(
        "Coefficients of the variants, on held-out training images of the digits",
        (),
        tuple(
            TableRow(one, "digits", one, claims={})
            for one in (
                CONTROLS[0],
                *(
                    f"{method},{name}={value}"
                    for method, (name, values) in COEFFICIENTS.items()
                    for value in values
                ),
            )
        ),
    ),
}
"""Rows without a claim of the paper; they are compared with each other.

Those without a checkpoint to evaluate are compared on the selection split.
"""

MAPS = ("tsne", "umap")
"""How features are mapped to two dimensions."""


def _figure(title: str, *methods: str, evaluated: bool = True) -> PaperTable:
    """Return the runs of a figure, with the checkpoint whose features it needs if it needs any."""
    claims: dict[str, Claim] = {"best": {}} if evaluated else {}
    rows = (TableRow(method_title(one), "cifar10", one, claims, "features") for one in methods)
    return PaperTable(title, (), tuple(rows))


FIGURES = {
    "figure1": _figure(
        "Figure 1: features of natural, adversarial and other examples", "pgd_at", "trades", "mart"
    ),
    "figure3": _figure(
        "Figure 3: the same, with TRADES-ANCRA", "pgd_at", "trades", "mart", "trades_ancra"
    ),
    "heads": _figure(
        "What each head contributes, and whether it follows a wrong mask", *ANCRA, evaluated=False
    ),
}
"""The runs of each figure, which are those of Table 1."""
