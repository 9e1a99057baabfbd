"""A server that speaks the OpenAI protocol, with steering for each request."""
