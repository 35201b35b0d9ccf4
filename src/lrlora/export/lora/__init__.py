"""Plain LoRA out of a learned update: how much rank each layer gets, its factors, and what that loses."""
