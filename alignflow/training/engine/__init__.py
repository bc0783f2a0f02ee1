"""What every method shares, from a spec to a trained model."""
