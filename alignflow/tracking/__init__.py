"""MLflow: runs, metrics, registered models."""
