"""Measures what a tool call costs here and elsewhere, in one interleaved run: `make bench`."""
