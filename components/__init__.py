"""What a fleet declares: configuration, what fits, and the Pulumi components."""
