"""Hands over to the distribution `pyprocrastinate-django`."""

from pyprocrastinate_django import app as current_app

__all__ = ["current_app"]
