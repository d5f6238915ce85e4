"""What administrators do: keys, the audit trail, the removal of tenants."""
