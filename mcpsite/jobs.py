"""Procrastinate as an application of ours."""

from procrastinate.contrib.django.apps import ProcrastinateConfig


class JobsConfig(ProcrastinateConfig):
    """Its tables, under the name that the sidebar has for them."""

    verbose_name = "System"
