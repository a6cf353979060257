"""The `access` application."""

from django.apps import AppConfig


class AccessConfig(AppConfig):
    """Registers `access` with Django."""

    name = "access"
    verbose_name = "Access"
