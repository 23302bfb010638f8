"""The operator's command line: looks at a fleet and orders, through Google's API alone."""
