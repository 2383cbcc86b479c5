"""The same student behind other servers."""
