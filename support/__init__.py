"""What every program needs besides the paper: command lines, runs, weights, and images."""
