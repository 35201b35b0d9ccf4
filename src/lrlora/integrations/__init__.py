"""LR-LoRA inside other training tools, by their configuration; each module needs its tool (docs/integrations.md)."""
