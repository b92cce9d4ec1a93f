"""Many requests, each drawn exactly once: manifests, journal, and the crews that do the work on one machine or many."""
