"""Hands over to the distribution `pyprocrastinate-django`."""

from pyprocrastinate_django.apps import *  # noqa: F403
