"""Plain weights: an adapter merged into the checkpoint of its base, tensor by tensor."""
