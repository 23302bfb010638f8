"""What runs machines: QEMU guests, which need no root, and systemd containers, which do."""
