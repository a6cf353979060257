"""The `audit` application."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """Registers `audit` with Django."""

    name = "audit"
    verbose_name = "Audit"
