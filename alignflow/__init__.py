"""alignflow: fine-tuning as retryable, certified stages. The library; it never imports prefect."""

__version__ = "0.1.0"
