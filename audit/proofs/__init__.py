"""Proofs that people can check elsewhere: of one record, and of two heads that continue each other."""
