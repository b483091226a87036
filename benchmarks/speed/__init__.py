"""Speed of the engine and of the whole stack, beside a peer and beside what the machine can do at best."""
