"""The parts of following one request: the ways it can take, and what is known of each."""
