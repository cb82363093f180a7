"""`make bench-gpu`: what a GPU can do, what the service does of it, and what it promises there."""
