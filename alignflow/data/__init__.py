"""Reading, validating, formatting, splitting and tokenising rows. No torch, and no database."""
