"""The `agents` application."""

from django.apps import AppConfig


class AgentsConfig(AppConfig):
    """Registers `agents` with Django."""

    name = "agents"
    verbose_name = "Agents"
