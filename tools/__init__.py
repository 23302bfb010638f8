"""Tools to build and to measure the fleet: the toolchain, the benchmarks."""
