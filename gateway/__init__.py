"""The call: from the wire through the one pipeline to a connector, and into the ledger."""
