"""The fleet on this machine: the lab, the same program, and real agents."""
