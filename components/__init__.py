"""The fleet's declaration: configuration, capacity, and the Pulumi components."""
