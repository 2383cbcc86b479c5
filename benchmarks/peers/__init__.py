"""The same student behind other servers, each written as that server's documentation says."""
