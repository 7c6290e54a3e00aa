"""Robustness: killed runs, long runs, and every export format."""
