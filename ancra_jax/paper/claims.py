"""The paper's tables as data: their rows, how each is trained and evaluated, what is claimed.

A claim is what the paper prints, in %; it is nobody's measurement here, and None where we know of
none. The columns are named as the results of an evaluation, without the number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Claim = Sequence[float | None]

FINAL = ("natural", "pgd", "fgsm", "cw", "autoattack")
HEADS = ("natural", "pgd_with_p", "fgsm_with_p", "cw_with_p", "autoattack")
BOTH = ("pgd", "fgsm", "cw", "pgd_with_p", "fgsm_with_p", "cw_with_p")
ABLATION = ("natural", "pgd_with_p")

WITH_REVERSE_ATTENTION = ("pgd_at_ancra", "trades_ancra", "mart_ancra", "trades_ra")


@dataclass(frozen=True)
class TableRow:
    """One row: a run, and which of its checkpoints are evaluated."""

    title: str  # as in the paper
    data: str  # the data set, which is the name of a file in ``configs/``
    method: str  # the argument of that file
    # By checkpoint, a number for each column of the table; () where none is known.
    claims: dict[str, Claim] = field(default_factory=lambda: {"best": ()})
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


METHODS = {
    "pgd_at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "sat": "SAT",
    "at_awp": "AT-AWP",
    "trades_awp": "TRADES-AWP",
    "at_s2o": "AT-S2O",
    "trades_s2o": "TRADES-S2O",
    "udr_pgd": "UDR-PGD",
    "udr_trades": "UDR-TRADES",
    "pgd_at_ancra": "PGD-AT-ANCRA",
    "trades_ancra": "TRADES-ANCRA",
    "mart_ancra": "MART-ANCRA",
}

TABLE1_CLAIMS = {
    ("cifar10", "trades"): (78.92, 48.40, 59.60, 47.59, 45.44),
    ("cifar10", "pgd_at_ancra"): (85.10, 89.03, 87.00, 89.23, 59.15),
    ("cifar10", "trades_ancra"): (81.70, 82.96, 82.74, 83.01, 59.70),
    ("cifar10", "mart_ancra"): (84.88, 88.56, 87.95, 88.77, 59.62),
    ("cifar100", "pgd_at_ancra"): (59.73, 58.10, 58.45, 58.58, 34.44),
    ("cifar100", "trades_ancra"): (53.73, 51.24, 52.17, 52.55, 35.81),
    ("cifar100", "mart_ancra"): (60.10, 58.40, 58.74, 59.41, 35.05),
}

TABLE2_CLAIMS = {
    "pgd_at_ancra": (89.03, 87.00, 89.23, 54.43, 58.23, 66.36),
    "trades_ancra": (82.96, 82.74, 83.01, 61.68, 61.56, 72.36),
    "mart_ancra": (88.56, 87.95, 88.77, 56.96, 60.43, 71.06),
}

PLAIN = "targeted=false"
# Soft-LS and Hard-LS are Table 4's names; the rows without a claim are not in the paper.
STRATEGIES = {
    "Random": (f"trades_ancra,{PLAIN}", (81.44, 62.64), (81.78, 61.71)),
    "Soft-LS": (f"trades_ancra,strategy=soft,{PLAIN}", (82.10, 61.83), (80.62, 58.47)),
    "Hard-LS": (f"trades_ancra,strategy=hard,{PLAIN}", (82.30, 62.53), (82.13, 60.98)),
    "Easy": (f"trades_ancra,strategy=easy,{PLAIN}", (), ()),
    "Targeted attack": ("trades_ancra", (81.36, 63.08), (82.18, 62.02)),
    "Soft-LS, targeted": ("trades_ancra,strategy=soft", (), ()),
    "Hard-LS, targeted": ("trades_ancra,strategy=hard", (), ()),
    "Easy, targeted": ("trades_ancra,strategy=easy", (), ()),
}

TABLES = {
    "table1": PaperTable(
        "Table 1: attacks on the final logits, ResNet-18",
        FINAL,
        tuple(
            TableRow(title, data, method, {"best": TABLE1_CLAIMS.get((data, method), ())})
            for data in ("cifar10", "cifar100")
            for method, title in METHODS.items()
        ),
    ),
    "table2": PaperTable(
        "Table 2: attacks on the final logits, and on the auxiliary heads too, CIFAR-10, ResNet-18",
        BOTH,
        tuple(
            TableRow(METHODS[method], "cifar10", method, {"best": claim})
            for method, claim in TABLE2_CLAIMS.items()
        ),
    ),
    "table3": PaperTable(
        "Table 3: the parts of ANCRA, heads attacked too, CIFAR-10, ResNet-18",
        HEADS,
        (
            # A network without auxiliary heads has the numbers of Table 1.
            TableRow("TRADES", "cifar10", "trades", {"best": TABLE1_CLAIMS["cifar10", "trades"]}),
            TableRow(
                "TRADES-ANC", "cifar10", "trades_anc", {"best": (80.77, 54.18, 63.44, 49.84, 48.51)}
            ),
            TableRow(
                "TRADES-RA", "cifar10", "trades_ra", {"best": (80.46, 61.59, 61.48, 72.15, 61.02)}
            ),
            TableRow(
                "TRADES-ANCRA",
                "cifar10",
                "trades_ancra",
                {"best": (81.70, 61.68, 61.56, 72.36, 59.70)},
            ),
        ),
    ),
    "table4": PaperTable(
        "Table 4: choice of the negatives, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        tuple(
            TableRow(title, "cifar10", method, {"best": best, "last": last}, "quick")
            for title, (method, best, last) in STRATEGIES.items()
        ),
    ),
    "alpha": PaperTable(
        "Ablation of alpha, CIFAR-10, ResNet-18, TRADES-ANCRA",
        ABLATION,
        (
            *(
                TableRow(
                    f"alpha = {alpha}", "cifar10", f"trades_ancra,alpha={alpha}", suite="quick"
                )
                for alpha in (0, 0.25, 0.5, 0.75)
            ),
            TableRow("alpha = 1", "cifar10", "trades_ancra", {"best": (81.70, 61.68)}, "quick"),
        ),
    ),
    "tiny_imagenet": PaperTable(
        "Tiny-ImageNet, PreActResNet-18",
        FINAL,
        tuple(TableRow(title, "tiny_imagenet", method) for method, title in METHODS.items()),
    ),
}
