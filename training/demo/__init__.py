"""The embedded demo: preference data with a known true reward, and the walk through all of it."""
