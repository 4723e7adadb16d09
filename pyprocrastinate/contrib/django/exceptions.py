"""Hands over to the distribution `pyprocrastinate-django`."""

from pyprocrastinate_django.exceptions import *  # noqa: F403
