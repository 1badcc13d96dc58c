"""What every part stands on: processes, seeds, clocks, compilation, configuration files."""
