"""GELU(linear) of an input that lies in several tensors, and its gradients."""
