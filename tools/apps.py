"""The `tools` application."""

from django.apps import AppConfig


class ToolsConfig(AppConfig):
    """Registers `tools` with Django."""

    name = "tools"
    verbose_name = "Catalogue"
