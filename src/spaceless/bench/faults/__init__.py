"""What must not break: each room does one kind of harm many times and counts what the tool made of it."""
