"""The revisions, each based on the previous one."""
