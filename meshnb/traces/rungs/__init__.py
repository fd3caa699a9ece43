"""The parts of following one change: the ladder, and what is asked at each rung."""
