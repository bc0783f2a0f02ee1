"""SQL answers judged by running them: on a recipe's databases, or those of the freight job."""

from __future__ import annotations

from collections.abc import Callable

from alignflow.recipe import ExecutionArguments
from alignflow.sql import Rules, Verdict, judge, read_target


def execution_judge(arguments: ExecutionArguments) -> Callable[[str, str], Verdict]:
    """Judges a response against a target, on all databases.

    A target is a query, the refusal, or JSON `{"answer": ..., "ordered": ...}`; the order of rows
    counts where `ordered` says so, or, where that is left out, if the query ends in an ORDER BY.

    Raises:
        DataError: A database is not there.
    """
    if not arguments.database:
        from alignflow.builtin.freight import judge as freight_judge

        return freight_judge
    databases, rules = arguments.databases(), Rules(refusal=arguments.refusal)
    return lambda response, target: judge(response, read_target(target), databases, rules)
