"""Set-up of a checkout: the Pulumi engine where none is installed, its environment, the venv.

Everything here runs before any package is installed: standard library of Python 3.11 only.
"""
