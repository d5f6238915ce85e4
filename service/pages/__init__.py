"""The dashboard and the page of the API's documentation."""
