"""Speed: size, latency, training step, memory, and the time of tools."""
