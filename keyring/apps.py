"""The `keyring` application."""

from django.apps import AppConfig


class KeyringConfig(AppConfig):
    """Registers `keyring` with Django."""

    name = "keyring"
    verbose_name = "Secrets"
