"""From new preferences to the next generation of a model."""
