"""Seals the records: one process puts them in order, builds the Merkle tree and signs its heads (docs/evidence.md)."""
