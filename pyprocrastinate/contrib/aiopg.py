"""This driver is not used here."""

from pyprocrastinate import exceptions

raise exceptions.MovedElsewhere("there is no AiopgConnector: use pyprocrastinate.PsycopgConnector, over psycopg 3")
