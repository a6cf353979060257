"""The `gateway` application."""

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Registers `gateway` with Django."""

    name = "gateway"
    verbose_name = "Gateway"
