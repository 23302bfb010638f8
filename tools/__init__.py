"""What the fleet is built and measured with: the toolchain, the benchmarks."""
