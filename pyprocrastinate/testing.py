"""
Hands over to the distribution `pyprocrastinate-testing`.
"""

try:
    from pyprocrastinate_testing import InMemoryConnector
except ModuleNotFoundError as error:
    raise ImportError(f"{error}: pip install 'pyprocrastinate[testing]'") from error

__all__ = ["InMemoryConnector"]
