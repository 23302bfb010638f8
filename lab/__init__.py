"""The fleet on this machine: a cloud, its machines, a registry, and `make lab`.

machines  QEMU guests or containers, and their image
cloud     Compute Engine and the other APIs that the program calls
standin   a registry that agents register with, where the real one is not available
fleet     `make lab`: the production program with Pulumi.lab.yaml, on all of these

The first two know no Pilot (tests/test_boundaries.py).
"""
