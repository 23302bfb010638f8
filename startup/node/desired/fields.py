"""The values that a `pilot-spec` may hold, as literals only.

A VM imports this (spec.py). The program that renders specs may not import what runs on a VM: it
reads the literals as data (components/spec_tables.py), so that a plan accepts nothing that a VM
refuses. Patterns match a whole text. To allow more is safe. Before allowing less, be sure that no
program has rendered such a spec: a VM that refuses its spec takes no change any more.
"""

# Least and most of each whole number, by its path. Also, basePort + agents is at most 65535, the
# last port.
NUMBERS = {
    "schema": (0, 1073741824),
    "agents": (0, 1_000_000),
    "basePort": (1023, 65534),
    "window": (1, 1000),
    "roll.batch": (1, 65535),
    "roll.watchSeconds": (0, 86400),
    # The latest turn of a script: an hour per VM of 4,660.
    "script.afterSeconds": (0, 16777216),
    # MiB.
    "memory.reserveMb": (0, 16777216),
    "memory.agentMb": (1, 1048576),
    "memory.connectionMb": (0, 1048576),
    "memory.activeConnections": (0, 1073741824),
    "ports.registry": (1, 65535),
    "ports.beacon": (1, 65535),
    "ports.dashboard": (1, 65535),
}

FLAGS = ("roll.auto", "uploadCopies")

# The kind of text at a path; for each kind its pattern, and its name in messages.
TEXTS = {
    "name": "name",
    "role": "role",
    "bucket": "bucket",
    "release.version": "version",
    "release.daemon.object": "object",
    "release.daemon.sha256": "sha256",
    "release.rendezvous.object": "object",
    "release.rendezvous.sha256": "sha256",
    "script.sha256": "sha256",
    "endpoints.storage": "url",
    "endpoints.secrets": "url",
    "registry": "address",
    "beacon": "address",
    "subnet": "network",
    "secrets.admin": "secret",
    "secrets.dashboard": "secret",
    "secrets.replication": "secret",
}
KINDS = {
    "name": (r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "an instance's name"),
    "role": (r"rendezvous|swarm", "rendezvous or swarm"),
    "bucket": (r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", "a bucket's name"),
    "version": (r"[0-9A-Za-z][-+.0-9A-Za-z_]{0,63}", "a version"),
    "object": (r"\S+", "an object's name"),
    "sha256": (r"[0-9a-f]{64}", "64 hex digits"),
    # A host is a DNS name or an address. Both sides check its port, 1 to 65535.
    "address": (
        (
            r"(?=[^:/]{1,253}(:|$))[0-9A-Za-z]([-0-9A-Za-z]{0,61}[0-9A-Za-z])?"
            r"(\.[0-9A-Za-z]([-0-9A-Za-z]{0,61}[0-9A-Za-z])?)*:[0-9]{1,5}"
        ),
        "HOST:PORT",
    ),
    "url": (
        (
            r"https?://(?=[^:/]{1,253}(:|$))[0-9A-Za-z]([-0-9A-Za-z]{0,61}[0-9A-Za-z])?"
            r"(\.[0-9A-Za-z]([-0-9A-Za-z]{0,61}[0-9A-Za-z])?)*(:[0-9]{1,5})?"
        ),
        "http(s)://HOST[:PORT] without a path",
    ),
    "network": (r"[0-9./]{9,31}", "a CIDR such as 10.10.0.0/20"),
    "secret": (
        r"projects/[-a-z0-9:.]{1,63}/secrets/[-_0-9A-Za-z]{1,255}/versions/([0-9]{1,9}|latest)",
        "projects/P/secrets/NAME/versions/V",
    ),
}

# The purposes of the rendezvous' tokens.
TOKENS = ("admin", "dashboard", "replication")

VARIABLE = r"[A-Za-z_][0-9A-Za-z_]*"
# Set by the units: an operator's value would send an agent to another registry, or all of them into
# one home. By prefix, so that later ones are reserved already.
RESERVED_VARIABLES = r"HOME|PILOT_(AGENT|PORT)_.*"
# Obeyed by the dynamic loader in every program of the unit, root's as well.
LOADER_VARIABLES = r"LD_.*|GLIBC_TUNABLES|GCONV_PATH"

# Read by Go's runtime. A GOMEMLIMIT that it cannot read ends every agent at its start; other bad
# values are ignored silently. With too low a limit the collector never stops, and thousands of
# processors cost an agent hundreds of MB.
GO_NUMBERS = {
    "GOGC": (10_000, "percent as 50, 1 to 10000, or off beside a GOMEMLIMIT"),
    "GOMAXPROCS": (1024, "a number of processors, 1 to 1024"),
}
GO_SIZE = r"([0-9]{1,19})(B|[KMGT]iB)?"
GO_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
# 16 MiB to what Go's int64 holds.
GO_LIMITS = (16777216, 9223372036854775807)
# Allowed values of these settings of GODEBUG: any other ends a program, or ruins its performance.
GO_DEBUG = {
    "cgocheck": ("0", "1"),
    "fips140": ("off", "on", "only", "debug"),
    "clobberfree": (),
    "efence": (),
    "gccheckmark": (),
    "gcstoptheworld": (),
    "sbrk": (),
    "schedtrace": (),
}
