"""How good is a model at a task: the same metric for a base, an adapter, and what an export made of it."""
