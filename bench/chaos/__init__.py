"""The nothing-lost campaign: load, and everything that may befall an installation under it."""
