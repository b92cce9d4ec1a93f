"""Measurements: each file is a command of its own, with what it needs and prints in its first lines."""
