"""Hands over to the distribution `pyprocrastinate-django`."""

from pyprocrastinate_django.models import *  # noqa: F403
