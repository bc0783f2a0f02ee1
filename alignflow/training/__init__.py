"""Stages that train, on TRL's trainers. No prefect, no mlflow."""
