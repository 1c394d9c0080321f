"""Models that answer on this machine, through llama.cpp."""
