"""Knowledge distillation of vision models on inputs that are learned to be hard."""

__version__ = "0.1.0"
