"""pilot-node: keeps a VM at what was declared. Standard library of Python 3.11 only.

machine      a VM's parts: files, processes, systemd, HTTP
desired      the spec and the orders, and where they come from
setup        set up before anything runs: limits, units, the release, isolation
pressure     memory and its limits: samples, leaks, freezing of benchmarks
rollout      the roll of a release
swarm        agents: which are started and stopped, how many at a time
rendezvous   the registry's file, the process, its tokens and banner
report       the status and the metrics
(here)       the command line, and the loops of the two roles

Each imports those above it, never those below (tests/startup/test_boundaries.py).
"""
