"""This driver is not used here."""

from pyprocrastinate import exceptions

raise exceptions.MovedElsewhere(
    "there is no Psycopg2Connector: use pyprocrastinate.SyncPsycopgConnector, over psycopg 3"
)
