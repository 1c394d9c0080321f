"""ggml's CUDA backend for inferd of the same version, which finds and loads it by itself."""
