"""What a recipe says to a metric or a reward: its name, its arguments, and databases. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import AfterValidator, Field, field_validator, model_validator

from alignflow.errors import DataError
from alignflow.recipe.section import Section
from alignflow.sql import Database, Limits, PostgresDatabase, SqliteDatabase


def _one_name(entry: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
    if isinstance(entry, dict) and len(entry) != 1:
        raise ValueError(f"names {sorted(entry)}; write one metric an entry, `- name: {{...}}`")
    return entry


MetricEntry = Annotated[str | dict[str, dict[str, Any]], AfterValidator(_one_name)]
"""A metric's name or file, or `{name: {argument: value}}`."""


class MetricUse(NamedTuple):
    """A metric as a recipe names it."""

    name: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, entry: MetricEntry) -> MetricUse:
        """From an entry of `metrics`."""
        return cls(entry, {}) if isinstance(entry, str) else cls(*next(iter(entry.items())))


Problem = tuple[Literal["error", "warning"], str]


class MetricArguments(Section):
    """Arguments of a metric. One of a field of the evaluation section is that field by default."""

    @property
    def files(self) -> list[str]:
        """Paths of what is read, whose digests stand in a stage's key."""
        return []

    @property
    def variables(self) -> list[str]:
        """Environment variables that stages need."""
        return []

    def problems(self) -> Iterator[Problem]:
        """What on this machine contradicts them."""
        return iter(())


class PostgresSource(Section):
    """A Postgres database, by the variable that holds its address."""

    postgres: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """NAME of the environment variable with the address, set where stages run. Never the address."""

    version: str = Field(min_length=1)
    """Yours, of its content: another version is another evaluation."""


DatabaseSource = str | PostgresSource


class ExecutionArguments(MetricArguments):
    """What SQL answers are run on. Without a database: the embedded freight job's."""

    database: tuple[DatabaseSource, ...] = ()
    """Path of a SQLite file, or `{postgres: VARIABLE, version: "1"}`, or a list: an answer is right
    if it is right on all of them. Nothing can be written."""

    refusal: str | None = None
    """The exact response that is right where the target is this text; None is no text."""

    timeout_seconds: float = Field(default=5.0, gt=0)
    """A statement that runs longer is stopped, and no answer."""

    @field_validator("database", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if value is None:
            return ()
        return cast("list[Any]", value) if isinstance(value, list | tuple) else (value,)

    @model_validator(mode="after")
    def _has_database(self) -> Self:
        if not self.database and (self.refusal is not None or self.timeout_seconds != 5.0):
            raise ValueError(
                "refusal and timeout_seconds are about a database of yours; name it in `database`"
            )
        return self

    @property
    def files(self) -> list[str]:
        """Of the SQLite databases."""
        return [source for source in self.database if isinstance(source, str)]

    @property
    def variables(self) -> list[str]:
        """Environment variables with addresses."""
        return [source.postgres for source in self.database if isinstance(source, PostgresSource)]

    def databases(self) -> list[Database]:
        """What answers are run on; Postgres is connected to when the first is.

        Raises:
            DataError: A file is no database.
        """
        limits = Limits(seconds=self.timeout_seconds)
        return [
            SqliteDatabase.at(source, limits)
            if isinstance(source, str)
            else PostgresDatabase(source.postgres, limits)
            for source in self.database
        ]

    def problems(self) -> Iterator[Problem]:
        """Files that are no databases, variables that are not set."""
        for path in self.files:
            try:
                SqliteDatabase.at(path, Limits())
            except DataError as error:
                yield "error", error.message
        for variable in self.variables:
            if problem := PostgresDatabase(variable, Limits()).missing:
                yield "warning", problem
