"""How long records are kept, what is held, and how a month leaves the ledger."""
