"""Merging an adapter into its base, with a certificate that the result is the same model."""

from alignflow.merging.certificate import CERTIFICATE_FILE, Certificate, Figures, Limits
from alignflow.merging.merge import merge

__all__ = ["CERTIFICATE_FILE", "Certificate", "Figures", "Limits", "merge"]
