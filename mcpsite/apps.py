"""The site itself as a Django application: its management commands, tasks and checks."""

from django.apps import AppConfig


class SiteConfig(AppConfig):
    """Wires everything, decides nothing."""

    name = "mcpsite"
    verbose_name = "Site"
