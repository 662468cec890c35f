"""Tables and plots of the documentation, made from the runs of scripts/."""
