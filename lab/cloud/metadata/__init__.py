"""The metadata servers of VMs: what they hold (`contents`), what they answer (`answers`), and the
sockets that they listen on (`server`)."""
