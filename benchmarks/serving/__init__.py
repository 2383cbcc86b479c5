"""The server against its engine, its limits and its peers."""
