"""
Hands over to the distribution `pyprocrastinate-sqlalchemy`.
"""

try:
    from pyprocrastinate_sqlalchemy import SQLAlchemyConnector, __getattr__
except ModuleNotFoundError as error:
    raise ImportError(f"{error}: pip install 'pyprocrastinate[sqlalchemy]'") from error

__all__ = ["SQLAlchemyConnector", "__getattr__"]
