"""Small adapters behind the ports, for tests of the driver and the origin on virtual time."""
