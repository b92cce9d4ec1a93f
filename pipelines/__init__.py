"""What draws: the mathematics of noise, samplers, model families, the one loop, and the engine that loads and places models."""
