"""Measurements of the tool itself, each a room with one command: `spaceless bench NAME`."""
