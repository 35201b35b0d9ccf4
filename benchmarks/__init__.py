"""Time and memory of LR-LoRA compared with other methods: `make bench`.

A timing is never a test: tests only read results.
"""
