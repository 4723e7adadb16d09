"""
Hands over to the distribution `pyprocrastinate-django`.
"""

try:
    from pyprocrastinate_django import DjangoApp, DjangoConnector, app, connector_params
except ModuleNotFoundError as error:
    raise ImportError(f"{error}: pip install 'pyprocrastinate[django]'") from error

__all__ = ["DjangoApp", "DjangoConnector", "app", "connector_params"]
