"""Prefect's and MLflow's servers on this machine, and what is deployed on them."""
