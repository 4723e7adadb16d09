"""
A bookshop whose orders and jobs are one transaction.

    cd plugins/pyprocrastinate-django/example
    ../../../run python manage.py migrate
    ../../../run python manage.py buy Ada "The Elements"
    ../../../run python manage.py procrastinate worker --one-shot

The database is a private PostgreSQL whose data are in the folder `queue`; put the address of a server of your own into
PROCRASTINATE_DSN, and it is there.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")
    execute_from_command_line(sys.argv)
