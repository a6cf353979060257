"""What stands outside of the database and holds it to its word: witnesses, anchors, and what they contradict."""
