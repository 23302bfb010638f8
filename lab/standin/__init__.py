"""A stand-in for Pilot's rendezvous, for machines where the real one is not available.

It speaks the registry's protocol to real daemons, keeps a store like the real one's and shows the
same numbers. It is no product: it says so in its log, its version, its page and its HTTP headers.
"""

from typing import Final

VERSION: Final = "1.0"
NOTICE: Final = "a stand-in for pilot-rendezvous, not the real one"
