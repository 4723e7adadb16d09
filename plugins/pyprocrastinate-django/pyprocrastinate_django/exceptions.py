"""
What goes wrong in Django only.
"""

from __future__ import annotations

from pyprocrastinate.exceptions import ProcrastinateException


class DjangoNotReady(ProcrastinateException):
    """
    Django is not ready, and until then the app can do nothing but declare tasks.

    What needs more belongs into the `ready` of an app that stands after `pyprocrastinate.contrib.django` in
    INSTALLED_APPS, or into the function that PROCRASTINATE_ON_APP_READY names; a program calls `django.setup()` first.
    """

    def __init__(self) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()))


class ReadOnlyModel(ProcrastinateException):
    """The models show what is in the queue, and cannot change it: defer, cancel and retry jobs with the app."""
