"""What every measurement has: where it was made, a file that says whether it is complete; and some of their own."""
