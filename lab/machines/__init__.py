"""Drivers that run machines: QEMU guests (no root), systemd containers (root)."""
