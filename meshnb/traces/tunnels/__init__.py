"""The parts of following a request through ztunnel."""
