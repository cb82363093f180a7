"""What a user has today on the same machine and model: two real servers."""
