"""The command `pyprocrastinate`, which the distribution `pyprocrastinate-cli` brings."""

from pyprocrastinate_cli import Commands, address, cli, load_app, main

__all__ = ["Commands", "address", "cli", "load_app", "main"]
