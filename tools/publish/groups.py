"""Published rows that can be compared: one data set, network, setting and threat model each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from ancra_jax import config as config_lib
from ancra_jax.results.load import method_settings
from ancra_jax.results.names import ADAPTIVE, WITH_P
from ancra_jax.results.rows import epsilon_text
from tools.publish.record import Published

WORST_CASE = "worst case"
ORDER = (
    *("natural", "pgd_at", "trades", "trades_awp", "trades_anc", "trades_ra", "trades_ancra"),
    "pgd_at_ancra",
)


@dataclass(frozen=True)
class Group:
    """Rows of one setting.

    Attributes:
      title: what they share; begins with what sets them apart from the paper.
      rows: by label, one of each seed, ascending.
    """

    title: str
    rows: dict[str, list[Published]]

    def of_method(self, method: str) -> list[Published]:
        """The seeds of a method, if it is there in one variant."""
        found = [row for row in self.rows.values() if row[0].record["method"] == method]
        return found[0] if len(found) == 1 else []

    @property
    def attacks(self) -> set[str]:
        """Names of all attacks on any of its rows."""
        return {attack for row in self.rows.values() for one in row for attack in one.correct}


def groups_of(published: Sequence[Published]) -> list[Group]:
    """Sorts rows into groups; of the paper's setting first."""
    keyed: dict[tuple, list[Published]] = {}
    for one in published:
        keyed.setdefault(_key(one), []).append(one)
    return [_group(rows) for _, rows in sorted(keyed.items(), key=lambda item: item[0])]


def method_title(method: str) -> str:
    """``'TRADES-ANCRA'`` for ``'trades_ancra'``."""
    return "Natural" if method == "natural" else method.upper().replace("_", "-")


def correct_under(one: Published, attack: str) -> Bool[np.ndarray, "examples"] | None:
    """Which of a row's examples are right under an attack, or in the worst case.

    A network without auxiliary heads is attacked with p as without. None if the attack was not run,
    and for the adaptive attacks on a network that declares no defence: a short Square is not
    comparable with attacks that were made for a network.
    """
    if attack == WORST_CASE:
        return one.survivors()
    if attack == ADAPTIVE and not _declares_defence(one):
        return None
    if not one.record["config"]["model"]["reverse_attention"]:
        attack = attack.removesuffix(WITH_P)
    return one.correct.get(attack)


def _declares_defence(one: Published) -> bool:
    record = one.record["attacks"].get(ADAPTIVE)
    return record is not None and bool(record["settings"].get("defences"))


def accuracies(rows: Sequence[Published], attack: str) -> list[float]:
    """In %, of each seed that was attacked so."""
    correct = [correct_under(one, attack) for one in rows]
    return [100 * float(bits.mean()) for bits in correct if bits is not None]


def _key(one: Published) -> tuple:
    shared = ("setting", "data", "data_fingerprint", "network", "norm", "epsilon", "checkpoint")
    return (*(one.record[name] for name in shared), one.num_examples)


def _group(rows: list[Published]) -> Group:
    record = rows[0].record
    labelled: dict[str, list[Published]] = {}
    for one in sorted(rows, key=_order):
        namesakes = [other for other in rows if other.record["method"] == one.record["method"]]
        labelled.setdefault(_label(one, namesakes), []).append(one)
    title = (
        f"{record['data']}, {record['network']}, epsilon {record['norm']} "
        f"{epsilon_text(record['epsilon'])}, {record['checkpoint']} checkpoint, "
        f"{rows[0].num_examples:,} test examples."
    )
    if record["setting"]:
        title = f"**{record['setting'][0].upper()}{record['setting'][1:]}.** {title}"
    return Group(title, labelled)


def _label(one: Published, namesakes: Sequence[Published]) -> str:
    """The method, with the settings in which its rows differ."""
    settings, *others = (
        method_settings(config_lib.from_mapping(row.record["config"])) for row in (one, *namesakes)
    )
    own = [
        f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
        if any(other[name] != value for other in others)
    ]
    return ", ".join([method_title(one.record["method"]), *own])


def _order(one: Published) -> tuple:
    method = one.record["method"]
    return ORDER.index(method) if method in ORDER else len(ORDER), method, one.record["seed"]
