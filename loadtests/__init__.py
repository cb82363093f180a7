"""Load on a running service, every reward checked."""
