"""Values of options that are not given, apart from what uses them: help loads nothing else."""

from typing import Final

POLL: Final = 3.0
"""Seconds between two looks; a VM publishes what changed at most every 5 s."""
LIMIT: Final = 300.0
"""Seconds without progress after which a wait is given up (the blog's five minutes)."""
THRESHOLD: Final = 9_000 / 9_500
"""Online agents below this fraction of the declared ones are an alert (the blog's numbers)."""
GROWTH: Final = 100 * 2**20
"""Growth above this, in bytes per hour, is an alert (the blog's 100 MB/h). The VM itself compares
growth with connections before it reports a leak."""
DASHBOARD_PORT: Final = 3000
"""The port of the dashboard on the rendezvous' VM."""
