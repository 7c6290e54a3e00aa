"""Accuracy: what models learn, and whom they find."""
