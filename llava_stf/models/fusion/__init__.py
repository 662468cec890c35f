"""From the tower's hidden states to image tokens: the fused projector."""
