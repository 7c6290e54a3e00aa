"""Speed: size, latency, training step, and the time of tools."""
