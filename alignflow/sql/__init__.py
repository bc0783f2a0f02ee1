"""SQL answers, judged by what they return: read-only databases, and a strict judge. No torch."""

from alignflow.sql.databases import Database as Database
from alignflow.sql.databases import Limits as Limits
from alignflow.sql.databases import PostgresDatabase as PostgresDatabase
from alignflow.sql.databases import Rows as Rows
from alignflow.sql.databases import SqliteDatabase as SqliteDatabase
from alignflow.sql.databases import read_only as read_only
from alignflow.sql.judge import Rules as Rules
from alignflow.sql.judge import Target as Target
from alignflow.sql.judge import Verdict as Verdict
from alignflow.sql.judge import judge as judge
from alignflow.sql.judge import read_target as read_target
