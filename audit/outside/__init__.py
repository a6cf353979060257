"""What stands outside of the database and holds it to its word: cosignatures of witnesses, anchors, and what they deny."""
