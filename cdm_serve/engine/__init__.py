"""What runs inside Triton's python model: prompt and seed in, pixels out."""
