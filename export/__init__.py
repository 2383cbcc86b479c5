"""Export a distilled student to ONNX and lay out the model folder that Triton loads."""
