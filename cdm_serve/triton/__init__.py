"""The Triton behind the gateway: launched, watched, spoken to."""
