import atexit
import os

from psycopg.conninfo import conninfo_to_dict

from pyprocrastinate import embedded

# Of a server of your own, DATABASES alone is enough.
server = embedded.resolve(os.environ.get("PROCRASTINATE_DSN", "embedded:queue"))
atexit.register(server.close)
address = conninfo_to_dict(server.conninfo)

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": address.get("host", ""),
        "PORT": address.get("port", ""),
        "USER": address.get("user", ""),
        "PASSWORD": address.get("password", ""),
        "NAME": address.get("dbname", "postgres"),
    }
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "pyprocrastinate.contrib.django",
    "bookshop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "bookshop.urls"
SECRET_KEY = "of no importance here"  # noqa: S105
STATIC_URL = "static/"
USE_TZ = True
# Django's own tasks, where Django has them: from 6.0 on.
TASKS = {"default": {"BACKEND": "pyprocrastinate_django.backend.ProcrastinateBackend"}}
