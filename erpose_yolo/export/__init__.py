"""Export to the formats of Ultralytics, and weights without code."""
