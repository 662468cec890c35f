"""What every measurement has: where it was made, and a file that says whether it is complete."""
