"""One run of a recipe: its stages in order, what became of them, and the report."""
