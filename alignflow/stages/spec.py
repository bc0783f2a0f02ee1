"""The stage contract: what a stage is told, what it returns, and the key that names its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignflow.files import digest_json
from alignflow.recipe import ComputeSection

CONTRACT_VERSION = 1
VERSIONED_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
StageState = Literal["completed", "cached", "failed", "skipped"]


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries whose change changes a result."""
    return {name: version(name) for name in VERSIONED_LIBRARIES}


class Record(BaseModel):
    """An immutable record that travels as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class InputRef(Record):
    """The part of a finished artifact that a stage reads."""

    stage: str
    key: str
    path: str
    """Absolute directory of the artifact's files. Not hashed."""
    digest: str
    """sha256 over names and contents of the parts read."""


class StageSpec(Record):
    """Everything a stage's process is told. It never receives a model or a data frame."""

    stage: str
    home: str
    """Absolute home. Not hashed."""
    params: dict[str, Any]
    """The stage's sections of the resolved recipe, and digests of what they name."""
    seed: int
    inputs: dict[str, InputRef] = Field(default_factory=dict)
    """Role (`data`, `sft`, `reward`, `aligned`) to what is read of that artifact."""
    compute: ComputeSection = Field(default_factory=ComputeSection)
    """Not hashed: a retry with a smaller micro-batch keeps its key."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Absolute paths of sources whose digests stand in `params`. Not hashed."""

    @property
    def key(self) -> str:
        """Names the work: same key, same result. 64 hex digits."""
        return digest_json(
            {
                "contract": CONTRACT_VERSION,
                "stage": self.stage,
                "params": self.params,
                "seed": self.seed,
                "inputs": {role: ref.digest for role, ref in self.inputs.items()},
                "libraries": library_versions(),
            }
        )

    @property
    def section(self) -> dict[str, Any]:
        """The stage's section of the recipe, as JSON; empty where it has none."""
        return self.params.get("section", {})

    def input(self, role: str) -> Path:
        """Directory of the files of the artifact in `role`."""
        return Path(self.inputs[role].path)


class RowAccount(Record):
    """Where a stage's rows went: read = trained + held_out + sum(dropped)."""

    read: int = 0
    trained: int = 0
    truncated: int = 0
    """Part of `trained`."""
    held_out: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason to count."""

    @property
    def balanced(self) -> bool:
        """Whether every row read is accounted for."""
        return self.read == self.trained + self.held_out + sum(self.dropped.values())

    @classmethod
    def total(cls, accounts: Iterable[RowAccount]) -> RowAccount:
        """The account of all rows of several."""
        parts = list(accounts)
        return cls(
            read=sum(account.read for account in parts),
            trained=sum(account.trained for account in parts),
            truncated=sum(account.truncated for account in parts),
            held_out=sum(account.held_out for account in parts),
            dropped=dict(sum((Counter(account.dropped) for account in parts), Counter[str]())),
        )


class StageResult(Record):
    """What a stage hands back beside its files."""

    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Final figures; rates are fractions from 0 to 1; None where a figure does not exist."""
    rows: RowAccount | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    """For MLflow: what was resolved (ranks, target modules, dtypes, parameter counts)."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Whatever the report shows of this stage (intervals, samples, curves)."""


class StageOutcome(Record):
    """What became of one stage in one run."""

    stage: str
    key: str | None = None
    """Stage key; None for a stage that was never planned (skipped)."""
    state: StageState
    seconds: float = 0.0
    """Wall time in this run, retries included."""
    attempts: int = 0
    """Attempts that the artifact took, or that failed; 0 for a skipped stage."""
    artifact: Path | None = None
    """Directory of the finished artifact."""
    mlflow_run_id: str | None = None
    """The MLflow run that produced the artifact, in this run or before."""
    result: StageResult | None = None
    error: str | None = None
    """One sentence for the user."""
    exit_code: int = 0
    aside: bool = False
    """Whether it is about another model than the run's."""
