"""Reading, validating, formatting, splitting and tokenising rows."""
