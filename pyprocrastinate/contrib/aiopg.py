"""This driver is not used here."""

from pyprocrastinate import exceptions

raise exceptions.MovedElsewhere("AiopgConnector is gone: use pyprocrastinate.PsycopgConnector, over psycopg 3")
