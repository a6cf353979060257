"""Connectors: one file a kind, listed in `settings.CONNECTORS`."""
