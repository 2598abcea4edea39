"""What runs in the environment of one library: started by the benchmarks, asked line by line."""
