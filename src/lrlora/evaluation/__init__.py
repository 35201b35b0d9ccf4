"""What a model gets right: each kind of task measured in a file of its own."""
