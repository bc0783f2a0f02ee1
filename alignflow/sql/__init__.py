"""SQL answers, judged by what they return: read-only databases, and a strict judge. No torch."""

from alignflow.sql.databases import Database, Limits, PostgresDatabase, Rows, SqliteDatabase
from alignflow.sql.judge import Category, Rules, Target, Verdict, judge, read_target

__all__ = [
    "Category",
    "Database",
    "Limits",
    "PostgresDatabase",
    "Rows",
    "Rules",
    "SqliteDatabase",
    "Target",
    "Verdict",
    "judge",
    "read_target",
]
