"""How studies survive what goes wrong: each room does one kind of damage and counts what came of it."""
