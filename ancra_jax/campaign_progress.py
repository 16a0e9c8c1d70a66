"""How far a campaign is: plain data, one JSON file."""

import dataclasses
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from ancra_jax.errors import UsageError

SCHEMA = 1
NEVER = -1
WAITING, TRAINING, EVALUATING, FINISHED = STATUSES = (
    *("waiting", "training", "evaluating", "finished"),
)


@dataclass
class RowProgress:
    """Of one row.

    Attributes:
      status: one of ``STATUSES``; of a row that failed, what it was at.
      train_seconds: spent, as are the next.
      evaluate_seconds: of the evaluation.
      problem: why it failed; empty if it did not.
      rounded_at: the step at which its state is carried rounded; never: it is carried exactly.
      delivered: the slice that gave out its final checkpoint.
    """

    status: str = WAITING
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    problem: str = ""
    rounded_at: int = NEVER
    delivered: int = NEVER

    @property
    def todo(self) -> bool:
        """Whether there is work that has not failed."""
        return self.status != FINISHED and not self.problem


@dataclass
class Progress:
    """Of all rows.

    Attributes:
      seconds: of the budget that earlier slices used.
      slices: how many there were.
      token: of the latest output; says whether a work directory belongs to it.
      finished: the tokens of the archives of finished rows, by the slice that wrote them.
      rows: by name.
    """

    seconds: float = 0.0
    slices: int = 0
    token: str = ""
    finished: dict[str, str] = field(default_factory=dict)
    rows: dict[str, RowProgress] = field(default_factory=dict)

    def of(self, name: str) -> RowProgress:
        """A row's; one that is new waits."""
        return self.rows.setdefault(name, RowProgress())

    def renew(self) -> str:
        """Gives this state of affairs a token of its own."""
        self.token = uuid.uuid4().hex[:8]
        return self.token

    def to_json(self) -> str:
        """The content of ``campaign.json``."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1) + "\n"


def from_json(text: str, where: str) -> Progress:
    """The inverse.

    Raises:
      UsageError: it is not what ``to_json`` wrote; ``where`` says which file.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        if content.pop("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        rows = {name: RowProgress(**row) for name, row in content.pop("rows").items()}
        if any(row.status not in STATUSES for row in rows.values()):
            raise ValueError("it holds an unknown status")
        return Progress(rows=rows, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: is not the state of a campaign: {error}") from error
