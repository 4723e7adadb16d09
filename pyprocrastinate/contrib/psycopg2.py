"""This driver is not used here."""

from pyprocrastinate import exceptions

raise exceptions.MovedElsewhere("Psycopg2Connector is gone: use pyprocrastinate.SyncPsycopgConnector, over psycopg 3")
