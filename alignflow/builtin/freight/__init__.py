"""The embedded job: text-to-SQL for a generated freight company."""
