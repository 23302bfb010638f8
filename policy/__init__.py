"""The policies of a pilot fleet: checks of a plan before it becomes real.

The pack shares no code with the program that it checks. A rule is a function from plain data to
`values.Violation`s. `pack` binds the rules to the policy SDK; only `__main__` starts its server.
"""
