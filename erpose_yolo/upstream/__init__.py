"""Every touch of what Ultralytics does not promise to keep, and nothing else."""
