"""pilot-node: keeps a VM at what was declared. Standard library of Python 3.11 only.

machine      what a VM has: files, processes, systemd, the kernel's numbers, HTTP
desired      what a VM should be: its spec, its orders, where they come from
setup        what is set up before anything runs: limits, units, the release, isolation
pressure     memory and its limits: samples, leaks, benchmarks that give way
rollout      the roll of a release
swarm        agents: which are started and stopped, how many at a time
rendezvous   the registry's file, the process, its tokens
report       the status and the metrics
(here)       the command line, and the loops of the two kinds of VM

Each imports those above it, never those below (tests/startup/test_boundaries.py).
"""
