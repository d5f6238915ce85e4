"""The history of the tables; ``store.database.schema`` runs it."""
