"""Data: synthetic people and label files."""
