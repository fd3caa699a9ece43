"""The parts of looking at both ends of a connection: what each speaks, shows and trusts."""
