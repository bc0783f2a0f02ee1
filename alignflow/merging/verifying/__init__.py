"""Whether what was written is base plus adapter: both compute, and their logits are compared."""
