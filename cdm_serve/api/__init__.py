"""The HTTP side: OpenAI's Images API, health, and the playground."""
