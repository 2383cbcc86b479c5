"""What a distillation costs, and what its parts do."""
