"""What people may ask about the data that records keep: erase a person, read a payload, find a value."""
