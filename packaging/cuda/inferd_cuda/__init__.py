"""ggml's CUDA backend for inferd. An inferd of the same version finds and loads it."""
