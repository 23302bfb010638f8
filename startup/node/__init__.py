"""pilot-node: keeps a VM at what was declared. Standard library of Python 3.11 only."""
