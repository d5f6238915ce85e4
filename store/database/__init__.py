"""The database: its connection, its schema, and what every table's queries share."""
