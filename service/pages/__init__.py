"""The dashboard and the API's page."""
