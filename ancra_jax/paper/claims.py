"""The paper's tables as data: their rows, how each is trained and evaluated, what is claimed.

The columns are named as the results of an evaluation, without the number of steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Claim = Mapping[str, float | None]
"""What the paper prints, in %, by column; nothing or None where this project knows of no number."""

FINAL = ("natural", "pgd", "fgsm", "cw", "autoattack")
HEADS = ("natural", "pgd_with_p", "fgsm_with_p", "cw_with_p", "autoattack")
BOTH = ("pgd", "fgsm", "cw", "pgd_with_p", "fgsm_with_p", "cw_with_p")
ABLATION = ("natural", "pgd_with_p")

BASELINES = ("pgd_at", "trades", "mart", "sat", "at_awp", "trades_awp", "at_s2o", "trades_s2o")
ANCRA = ("pgd_at_ancra", "trades_ancra", "mart_ancra")
PAPER_METHODS = (*BASELINES, "udr_pgd", "udr_trades", *ANCRA)
WITH_REVERSE_ATTENTION = (*ANCRA, "trades_ra")


@dataclass(frozen=True)
class TableRow:
    """One row: a run, and which of its checkpoints are evaluated."""

    title: str  # as in the paper
    data: str  # the data set, which is the name of a file in ``configs/``
    method: str  # the argument of that file
    claims: Mapping[str, Claim] = field(default_factory=lambda: {"best": {}})  # by checkpoint
    suite: str = "paper"  # of ``ancra_jax.evaluate``, which has the attacks of the columns

    @property
    def suites(self) -> tuple[str, ...]:
        """The suite, and for a network with reverse attention the attacks through its masks."""
        method = self.method.partition(",")[0]
        return (self.suite, "adaptive") if method in WITH_REVERSE_ATTENTION else (self.suite,)

    @property
    def name(self) -> str:
        """Names the row on the command line and its directories; equal for equal runs."""
        return f"{self.data}/{self.method.replace(',', '-')}"


@dataclass(frozen=True)
class PaperTable:
    """A table."""

    title: str  # what it shows
    columns: tuple[str, ...]  # what the claims are about
    rows: tuple[TableRow, ...]


def method_title(method: str) -> str:
    """Return ``'TRADES-ANCRA'`` for ``'trades_ancra'``."""
    return "Natural" if method == "natural" else method.upper().replace("_", "-")


# FINAL, then PGD, FGSM and C&W on the auxiliary heads too. A network without heads has the numbers
# of its final logits there.
_PRINTED = {
    ("cifar10", "trades"): (78.92, 48.40, 59.60, 47.59, 45.44, 48.40, 59.60, 47.59),
    ("cifar10", "trades_anc"): (80.77, None, None, None, 48.51, 54.18, 63.44, 49.84),
    ("cifar10", "trades_ra"): (80.46, None, None, None, 61.02, 61.59, 61.48, 72.15),
    ("cifar10", "pgd_at_ancra"): (85.10, 89.03, 87.00, 89.23, 59.15, 54.43, 58.23, 66.36),
    ("cifar10", "trades_ancra"): (81.70, 82.96, 82.74, 83.01, 59.70, 61.68, 61.56, 72.36),
    ("cifar10", "mart_ancra"): (84.88, 88.56, 87.95, 88.77, 59.62, 56.96, 60.43, 71.06),
    ("cifar100", "pgd_at_ancra"): (59.73, 58.10, 58.45, 58.58, 34.44),
    ("cifar100", "trades_ancra"): (53.73, 51.24, 52.17, 52.55, 35.81),
    ("cifar100", "mart_ancra"): (60.10, 58.40, 58.74, 59.41, 35.05),
}
CLAIMS: dict[tuple[str, str], Claim] = {
    run: dict(zip((*FINAL, *HEADS[1:4]), numbers, strict=False))
    for run, numbers in _PRINTED.items()
}
"""By data set and method, what Tables 1 to 3 print."""


def _rows(data: str, methods: Iterable[str]) -> tuple[TableRow, ...]:
    """Return the rows of methods with what the paper prints of them."""
    return tuple(
        TableRow(method_title(method), data, method, {"best": CLAIMS.get((data, method), {})})
        for method in methods
    )


def _ablation(title: str, options: str, *claims: Sequence[float]) -> TableRow:
    """Return a row of TRADES-ANCRA; claims are of its best and, if given, last checkpoint."""
    checkpoints = zip(("best", "last"), claims, strict=False)
    by_column = {name: dict(zip(ABLATION, claim, strict=False)) for name, claim in checkpoints}
    return TableRow(title, "cifar10", f"trades_ancra{options}", by_column, "quick")


PLAIN = "targeted=false"
TABLES = {
    "table1": PaperTable(
        "Table 1: attacks on the final logits, ResNet-18",
        FINAL,
        _rows("cifar10", PAPER_METHODS) + _rows("cifar100", PAPER_METHODS),
    ),
    "table2": PaperTable(
        "Table 2: attacks on the final logits, and on the auxiliary heads too, CIFAR-10, ResNet-18",
        BOTH,
        _rows("cifar10", ANCRA),
    ),
    "table3": PaperTable(
        "Table 3: the parts of ANCRA, heads attacked too, CIFAR-10, ResNet-18",
        HEADS,
        _rows("cifar10", ("trades", "trades_anc", "trades_ra", "trades_ancra")),
    ),
    "table4": PaperTable(
        "Table 4: choice of the negatives, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        # Soft-LS and Hard-LS are the paper's names; the rows without a claim are not in the paper.
        (
            _ablation("Random", f",{PLAIN}", (81.44, 62.64), (81.78, 61.71)),
            _ablation("Soft-LS", f",strategy=soft,{PLAIN}", (82.10, 61.83), (80.62, 58.47)),
            _ablation("Hard-LS", f",strategy=hard,{PLAIN}", (82.30, 62.53), (82.13, 60.98)),
            _ablation("Easy", f",strategy=easy,{PLAIN}", (), ()),
            _ablation("Targeted attack", "", (81.36, 63.08), (82.18, 62.02)),
            _ablation("Soft-LS, targeted", ",strategy=soft", (), ()),
            _ablation("Hard-LS, targeted", ",strategy=hard", (), ()),
            _ablation("Easy, targeted", ",strategy=easy", (), ()),
        ),
    ),
    "alpha": PaperTable(
        "Ablation of alpha, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        (
            *(_ablation(f"alpha = {one}", f",alpha={one}", ()) for one in (0, 0.25, 0.5, 0.75)),
            _ablation("alpha = 1", "", (81.70, 61.68)),
        ),
    ),
    "tiny_imagenet": PaperTable(
        "Tiny-ImageNet, PreActResNet-18", FINAL, _rows("tiny_imagenet", PAPER_METHODS)
    ),
}

MAPS = ("tsne", "umap")
"""How features are mapped to two dimensions."""


def _figure(title: str, *methods: str) -> PaperTable:
    rows = tuple(TableRow(method_title(one), "cifar10", one) for one in methods)
    return PaperTable(title, (), rows)


FIGURES = {
    "figure1": _figure(
        "Figure 1: features of natural, adversarial and other examples", "pgd_at", "trades", "mart"
    ),
    "figure3": _figure(
        "Figure 3: the same, with TRADES-ANCRA", "pgd_at", "trades", "mart", "trades_ancra"
    ),
    "heads": _figure("What each head contributes, and whether it follows a wrong mask", *ANCRA),
}
"""The runs of each figure, which are those of Table 1."""
