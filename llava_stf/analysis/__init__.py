"""What a model costs, and what its vision tokens stand for."""
