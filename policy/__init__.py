"""The policies of a pilot fleet: what a plan must not contain, checked before it becomes real.

Nothing here is shared with the program that is checked. A rule is a function from plain data to
a list of `values.Violation`; `pack` binds the rules to the policy SDK, and only `__main__` starts
its server.
"""
