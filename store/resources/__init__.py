"""What a process needs of its machine, and how tenants share what it has."""
